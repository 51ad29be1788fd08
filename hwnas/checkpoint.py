"""Checkpoints: everything a loop needs to go on, in one file that is old or new, never half."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, sha256, write_atomic


def save(path: Path, state: dict[str, Any], settings: object) -> None:
    """Write a checkpoint: a line with the checksum of the rest, then what `torch.save` writes.

    Args:
        path: The file; replaced as a whole.
        state: Tensors, numbers, text and containers of them.
        settings: JSON values that a resumed run must share, e.g. learning rates.
    """
    buffer = io.BytesIO()
    torch.save({"settings": sha256(canonical_json(settings)), "state": state}, buffer)
    content = buffer.getvalue()
    write_atomic(path, sha256(content).encode() + b"\n" + content)


def load(path: Path, settings: object) -> dict[str, Any] | None:
    """Return the state of a checkpoint, None if there is no file.

    Raises:
        HwnasError: If it is damaged, or made with other settings.
    """
    if not path.exists():
        return None
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError as e:
        raise HwnasError(f"cannot read the checkpoint at {path}: {e.strerror}") from e
    # torch.load takes changed weights without a word, and fails on changed structure in a dozen ways.
    if digest != sha256(content).encode():
        raise HwnasError(f"{path} is not a whole checkpoint: its checksum does not fit; remove it to start anew")
    loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if loaded["settings"] != sha256(canonical_json(settings)):
        raise HwnasError(f"{path} was made with other settings; use another run name, or remove it to start anew")
    state: dict[str, Any] = loaded["state"]
    return state
