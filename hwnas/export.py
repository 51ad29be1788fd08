"""Export of a trained network to one ONNX file, checked against the network it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from hwnas.arch import Architecture
from hwnas.data.augment import normalise
from hwnas.data.base import SegmentationData
from hwnas.errors import HwnasError
from hwnas.files import sha256, write_atomic
from hwnas.ops.onnx_graph import OPSET, export_network
from hwnas.ops.trace import Trace, trace
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.spaces.base import SearchSpace

SCORE_TOLERANCE = 1e-4  # relative to the largest score


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Put weights from a file into a network of the same architecture.

    Raises:
        HwnasError: If the file is missing, damaged or of another network.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise HwnasError(f"cannot read weights at {path}: {e.strerror}") from e
    try:
        network.load_state_dict(load_safetensors(content))
    except (SafetensorError, RuntimeError) as e:
        raise HwnasError(
            f"{path} does not hold weights of this network ({str(e).splitlines()[0]}); train it again"
        ) from e


def export(
    space: SearchSpace,
    arch: Architecture,
    weights: Path,
    data: SegmentationData,
    path: Path,
    labels: bool,
) -> tuple[Trace, dict[str, Any]]:
    """Write ``path``: image (1, 3, H, W) float32, normalised, to ``labels`` (1, H, W) uint8 or ``logits``.

    The file passed onnx.checker, and its scores and labels were compared with the network's on a real image.

    Args:
        space: At the deployment scale.
        arch: Complete.
        weights: Made by training.
        data: A split whose first image is used for the comparison; class names, mean and std go into the file.
        path: The file.
        labels: Whether upsampled scores end in argmax inside the file.

    Returns:
        The trace of what was exported, and the facts of the comparison.

    Raises:
        HwnasError: If the file does not compute what the network does.
    """
    network = space.build(arch, form="deploy", labels=False)
    load_weights(network, weights)
    network.eval()
    shape = (1, 3, *space.scale.size)
    meta = {
        "hwnas.architecture": json.dumps(arch.to_json(), sort_keys=True),
        "hwnas.classes": json.dumps(data.classes.names),
        "hwnas.palette": json.dumps(data.classes.palette),
        "hwnas.mean": json.dumps(data.mean),
        "hwnas.std": json.dumps(data.std),
    }
    image = normalise(data[0].image, data.mean, data.std)[None]
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    scored = trace(network, shape)
    model = export_network(scored, "logits", meta)
    facts: dict[str, Any] = {
        "opset": OPSET,
        "labels": labels,
        **_compare_scores(model.SerializeToString(), image, expected),
    }
    traced = scored
    if labels:
        ending = space.build(arch, form="deploy", labels=True)
        ending.load_state_dict(network.state_dict())
        traced = trace(ending.eval(), shape)
        model = export_network(traced, "labels", meta)
        facts |= _compare_labels(model.SerializeToString(), image, expected)
    content = model.SerializeToString(deterministic=True)
    write_atomic(path, content)
    return traced, facts | {"sha256": sha256(content), "bytes": len(content)}


def _compare_scores(model: bytes, image: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    with open_onnx(model) as runner:
        got = runner.run({"image": image})["logits"]
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not error <= SCORE_TOLERANCE:  # also where it is NaN
        raise HwnasError(
            f"ONNX Runtime's scores differ from the network's by {error:.2g} of the largest; do not use it"
        )
    return {"score_error": error}


def _compare_labels(model: bytes, image: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    with open_onnx(model) as runner:
        got = runner.run({"image": image})["labels"]
    top = np.sort(expected, axis=1)
    sure = top[:, -1] - top[:, -2] > SCORE_TOLERANCE * np.abs(expected).max()
    wrong = int((got != expected.argmax(1))[sure].sum())
    if wrong:
        raise HwnasError(f"ONNX Runtime's labels differ from the network's in {wrong} pixels; do not use it")
    return {"label_ties": int((~sure).sum())}
