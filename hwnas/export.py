"""Export of a trained network to one ONNX file, checked against the network it came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hwnas.data.base import CLASSIFICATION, SegmentationData, task_of
from hwnas.errors import HwnasError
from hwnas.files import sha256, write_atomic
from hwnas.images import normalise
from hwnas.learn.device import Context
from hwnas.learn.weights import check_weights, read_weights
from hwnas.ops.layers import Linear, Resize
from hwnas.ops.onnx_graph import OPSET, export_network
from hwnas.ops.precision import to_half
from hwnas.ops.trace import INPUT, Trace, trace
from hwnas.problem import Architecture
from hwnas.runtime.deploy.bundle import KINDS
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.engines.scopes import to_labels
from hwnas.spaces import Space

if TYPE_CHECKING:
    from onnx import ModelProto

SCORE_TOLERANCE = 1e-4  # relative to the largest score
HALF_TOLERANCE = 0.01  # share of the pixels, or images, that may get another label in float16
MOST_CLASSES = 256  # labels of files that ship are bytes
COMPARED = 100  # images, where one has one label


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Put weights from a file into a network of the same architecture.

    Raises:
        HwnasError: If the file is missing, damaged or of another network.
    """
    weights = read_weights(path)
    check_weights(path, weights, network)
    network.load_state_dict(weights)


def load_trained(space: Space, arch: Architecture, weights: Path, device: torch.device) -> torch.nn.Module:
    """Return a trained network on a device, to give scores.

    Args:
        space: At the deployment scale.
        arch: Complete.
        weights: Made by training.
        device: Where it computes.

    Raises:
        HwnasError: If the weights cannot be used, see `load_weights`.
    """
    network = space.build(arch, form="deploy")
    load_weights(network, weights)
    return Context(device).module(network).eval()


def ending(traced: Trace, kind: str) -> Trace:
    """Return the part of the trace of a network that a file of a kind computes.

    Args:
        traced: Of the network, which ends in labels for the kind ``"labels"``, else in scores at full size; one that
            classifies images has no other scores.
        kind: One of `hwnas.runtime.deploy.bundle.KINDS`.
    """
    assert kind in KINDS
    if kind != "scores" or traced.calls[-1].spec.kind == Linear.kind:
        return traced
    assert traced.calls[-1].spec.kind == Resize.kind, "scores are brought to full size at the end"
    return traced.before_last()


def export(
    space: Space,
    arch: Architecture,
    weights: Path,
    data: SegmentationData,
    path: Path,
    kind: str = "labels",
    precision: str = "fp32",
) -> tuple[Trace, dict[str, Any]]:
    """Write ``path``: image (1, 3, H, W) float32, normalised, to what `kind` says.

    The file passes onnx.checker, and ONNX Runtime gives the same scores with it as the network: on one image, or on
    `COMPARED` where images are classified.

    Args:
        space: At the deployment scale.
        arch: Complete.
        weights: Made by training.
        data: A split whose first images are used for the comparison; class names, mean and std go into the file.
        path: The file.
        kind: ``"labels"`` (1, H, W) uint8, ``"logits"`` (1, K, H, W) float32, or ``"scores"``, the same before they are
            upsampled: (1, K, h, w). The output is called so too. Of a network that classifies images (1,) uint8, and
            twice (1, K) float32.
        precision: What the file computes in: float16 for ``"fp16"``, else float32. Its input is float32 always.

    Returns:
        The trace of what was exported, and the facts: ``opset``, ``shape`` and ``dtype`` of the output, ``sha256`` and
        ``bytes`` of the file, and ``parity``.

    Raises:
        HwnasError: If the file does not compute what the network does, or there are more than MOST_CLASSES classes.
    """
    if len(data.classes) > MOST_CLASSES:
        raise HwnasError(
            f"{data.name} has {len(data.classes)} classes, and labels that ship are bytes, at most {MOST_CLASSES}"
        )
    network = space.build(arch, form="deploy", labels=False)
    load_weights(network, weights)
    network.eval()
    meta = {
        "hwnas.architecture": json.dumps(arch.to_json(), sort_keys=True),
        "hwnas.classes": json.dumps(data.classes.names),
        "hwnas.palette": json.dumps(data.classes.palette),
        "hwnas.mean": json.dumps(data.mean),
        "hwnas.std": json.dumps(data.std),
    }
    n = min(COMPARED, len(data)) if task_of(data) is CLASSIFICATION else 1
    images = [normalise(data[i].image, data.mean, data.std)[None] for i in range(n)]
    scores, logits = (np.concatenate(a) for a in zip(*(_scores_and_logits(network, i) for i in images), strict=True))
    traced = trace(network, (1, 3, *space.scale.size))
    model = export_network(traced, "logits", meta)
    out = _run(model, images)
    parity = _compare_scores(out, logits)
    if kind != "logits":
        if kind == "labels":
            labelling = space.build(arch, form="deploy", labels=True)
            labelling.load_state_dict(network.state_dict())
            traced = trace(labelling.eval(), traced.input_shape)
        traced = ending(traced, kind)
        model = export_network(traced, kind, meta)
        out = _run(model, images)
        parity |= _compare_scores(out, scores) if kind == "scores" else {}
        parity |= _compare_labels(to_labels(out, space.scale.size), logits)
    if precision == "fp16":
        model = to_half(model)
        out = _run(model, images)
        parity = _compare_half(to_labels(out, space.scale.size), logits)
    content = model.SerializeToString(deterministic=True)
    write_atomic(path, content)
    facts = {"opset": OPSET, "shape": (1, *out.shape[1:]), "dtype": str(out.dtype), "parity": parity}
    return traced, facts | {"sha256": sha256(content), "bytes": len(content)}


def _scores_and_logits(network: torch.nn.Module, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the last resize of a network reads, (1, K, h, w), and its result, (1, K, H, W).

    Both are its scores (1, K) where it classifies images.
    """
    read: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, Resize):
            read.append(inputs[0])

    # The op is made in the forward pass, so there is no module of the network to ask.
    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with torch.no_grad():
            logits = network(torch.from_numpy(image)).cpu().numpy()
    finally:
        hook.remove()
    return (read[-1].cpu().numpy() if logits.ndim == 4 else logits), logits


def _run(model: ModelProto, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return what a file gives for images (1, 3, H, W), one after the other: its batch is 1."""
    with open_onnx(model.SerializeToString()) as runner:
        return np.concatenate([next(iter(runner.run({INPUT: image}).values())) for image in images])


def _compare_scores(got: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not error <= SCORE_TOLERANCE:  # also where it is NaN
        raise HwnasError(
            f"ONNX Runtime's scores differ from the network's by {error:.2g} of the largest; do not use it"
        )
    return {"score_error": error}


def _compare_labels(got: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    top = np.sort(logits, axis=1)
    sure = top[:, -1] - top[:, -2] > SCORE_TOLERANCE * np.abs(logits).max()
    wrong = int((got != logits.argmax(1))[sure].sum())
    if wrong:
        what = "pixels" if logits.ndim == 4 else "images"
        raise HwnasError(f"ONNX Runtime's labels differ from the network's in {wrong} {what}; do not use it")
    return {"label_ties": int((~sure).sum())}


def _compare_half(got: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    share = float((got != logits.argmax(1)).mean())
    if share > HALF_TOLERANCE:
        raise HwnasError(
            f"in float16 {share:.1%} of the labels differ from the network's, more than {HALF_TOLERANCE:.0%}; "
            "export it with --precision fp32"
        )
    return {"label_difference": share}
