"""Checkpoints: everything a loop needs to go on, in one file that is old or new, never half."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, is_there, sha256, write_atomic

Parts = dict[torch.dtype, list[Tensor]]
_PLACE = "a tensor of this checkpoint"


def save(path: Path, state: dict[str, Any], settings: object) -> None:
    """Write a checkpoint: a line with the checksum of the rest, then what `torch.save` writes.

    Args:
        path: The file; replaced as a whole.
        state: Tensors, numbers, text and containers of them.
        settings: JSON values that a resumed run must share, e.g. learning rates.
    """
    buffer = io.BytesIO()
    flat: Parts = {}
    packed = _pack(state, flat)
    tensors = {dtype: (_on_host(parts), [p.numel() for p in parts]) for dtype, parts in flat.items()}
    torch.save({"settings": sha256(canonical_json(settings)), "state": packed, "tensors": tensors}, buffer)
    content = buffer.getvalue()
    write_atomic(path, sha256(content).encode() + b"\n" + content)


def load(path: Path, settings: object) -> dict[str, Any] | None:
    """Return the state of a checkpoint, None if there is no file.

    Raises:
        HwnasError: If it is damaged, or made with other settings.
    """
    if not is_there(path):
        return None
    loaded = _read(path)
    if loaded["settings"] != sha256(canonical_json(settings)):
        raise HwnasError(f"{path} was made with other settings; use another run name, or remove it to start anew")
    state: dict[str, Any] = loaded["state"]
    return state


def read(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint whatever settings it was made with: to look at, not to go on from.

    Raises:
        HwnasError: If it is missing or damaged.
    """
    state: dict[str, Any] = _read(path)["state"]
    return state


def _read(path: Path) -> dict[str, Any]:
    """Return settings and state, having checked that every byte is as it was written."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError as e:
        raise HwnasError(f"cannot read the checkpoint at {path}: {e.strerror}") from e
    # torch.load takes changed weights without a word, and fails on changed structure in a dozen ways.
    if digest != sha256(content).encode():
        raise HwnasError(f"{path} is not a whole checkpoint: its checksum does not fit; remove it to start anew")
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    parts = {dtype: list(values.split(sizes)) for dtype, (values, sizes) in loaded["tensors"].items()}
    return {**loaded, "state": _unpack(loaded["state"], parts)}


def _on_host(parts: list[Tensor]) -> Tensor:
    """Return flat tensors of one type and of any device as one on the host: in one copy from each device."""
    devices = dict.fromkeys(p.device for p in parts)
    if len(devices) == 1:
        return torch.cat(parts).cpu()
    found: dict[int, Tensor] = {}
    for device in devices:
        own = {i: p for i, p in enumerate(parts) if p.device == device}
        pieces = torch.split(torch.cat(list(own.values())).cpu(), [p.numel() for p in own.values()])
        found |= dict(zip(own, pieces, strict=True))
    return torch.cat([found[i] for i in range(len(parts))])


def _pack(value: Any, flat: Parts) -> Any:
    """Return a structure with places for its tensors, whose values go to one list for each type.

    torch.save takes a hundred times as long for thousands of small tensors as for a large one.
    """
    if isinstance(value, Tensor):
        parts = flat.setdefault(value.dtype, [])
        channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        parts.append((value.permute(0, 2, 3, 1) if channels_last else value).detach().reshape(-1))
        return {_PLACE: (value.dtype, len(parts) - 1, tuple(value.shape), channels_last)}
    if isinstance(value, dict):
        return {k: _pack(v, flat) for k, v in value.items()}
    return type(value)(_pack(v, flat) for v in value) if isinstance(value, list | tuple) else value


def _unpack(packed: Any, parts: Parts) -> Any:
    """Return what `_pack` was given; tensors have memory of their own."""
    if isinstance(packed, dict):
        if _PLACE not in packed:
            return {k: _unpack(v, parts) for k, v in packed.items()}
        dtype, index, shape, channels_last = packed[_PLACE]
        values = parts[dtype][index].clone()
        if not channels_last:
            return values.view(shape)
        n, c, h, w = shape
        return values.view(n, h, w, c).permute(0, 3, 1, 2)
    return type(packed)(_unpack(v, parts) for v in packed) if isinstance(packed, list | tuple) else packed
