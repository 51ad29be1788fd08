"""Checkpoints: everything a loop needs to go on, in one file that is old or new, never half."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, sha256, write_atomic


def save(path: Path, state: dict[str, Any], settings: object) -> None:
    """Write a checkpoint.

    Args:
        path: The file; replaced as a whole.
        state: Tensors, numbers, text and containers of them.
        settings: JSON values that a resumed run must share, e.g. learning rates.
    """
    content = {"settings": sha256(canonical_json(settings)), "state": state}
    write_atomic(path, lambda f: torch.save(content, f))


def load(path: Path, settings: object) -> dict[str, Any] | None:
    """Return the state of a checkpoint, None if there is no file.

    Raises:
        HwnasError: If it is damaged, or made with other settings.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, OSError) as e:
        raise HwnasError(
            f"{path} is not a checkpoint that can be read ({type(e).__name__}); remove it to start anew"
        ) from e
    if content["settings"] != sha256(canonical_json(settings)):
        raise HwnasError(f"{path} was made with other settings; use another run name, or remove it to start anew")
    state: dict[str, Any] = content["state"]
    return state
