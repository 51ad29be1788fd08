"""Files of weights: safetensors, with a checksum over names, types, shapes and values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.files import write_atomic
from hwnas.learn.device import read

_KEY = "sha256"  # the only one: safetensors writes several in an order that changes


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights, whatever file they are in."""
    out = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().contiguous()
        out.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        out.update(read(value.reshape(-1).view(torch.uint8)).tobytes())  # bytes: numpy has no bfloat16
    return out.hexdigest()


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights of any device, whole or not at all."""
    on_host = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_atomic(path, save(on_host, {_KEY: digest(on_host)}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file by name, on the host; one without a checksum, as others write it, is read too.

    Raises:
        HwnasError: If it is missing, is no file of weights, or does not hold what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            said = (file.metadata() or {}).get(_KEY)
    except OSError as e:
        reason = e.strerror or "there is no such file"
        raise HwnasError(f"cannot read weights at {path}: {reason}") from e
    except SafetensorError as e:
        raise HwnasError(f"{path} is not a file of weights, or damaged ({e}); train it again") from e
    if said is not None and said != digest(weights):
        raise HwnasError(f"{path} was damaged: its checksum does not fit its weights; remove it and train again")
    return weights


def check_weights(path: Path, weights: Mapping[str, Tensor], network: torch.nn.Module) -> None:
    """Refuse weights that are not those of a network, by name and shape.

    Raises:
        HwnasError: If there are others, or some are missing; names the first.
    """
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = next((n for n in [*own, *there] if own.get(n) != there.get(n)), None)
    if wrong is not None:
        theirs, ours = (str(list(x[wrong])) if wrong in x else "none" for x in (there, own))
        raise HwnasError(
            f"{path} does not hold weights of this network: its {wrong} has the shape {theirs}, the network's {ours}; "
            "take a file that was trained for the same architecture, scale and classes"
        )
