"""Encoders that start from weights that others trained: files read, names brought to ours, nothing left over."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.files import sha256
from hwnas.optional import require
from hwnas.spaces import Encoder, Source, SpaceNet
from hwnas.spaces.sources import FIRST

PACKAGED = "imagenet"  # names the weights that come as a Python package
EXTRA = "pretrained"
WRAPPERS = ("state_dict", "model")  # keys under which training codes keep weights in a checkpoint
COUNT = "num_batches_tracked"  # of a BatchNorm, which old files lack
# What torch.load raises on damaged files; on those with more than tensors it is an UnpicklingError.
DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ArithmeticError,
    struct.error,
    zipfile.BadZipFile,
)


def start_encoder(
    network: SpaceNet,
    encoder: Encoder,
    weights: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> str:
    """Load weights of others into the encoder of a network; its head stays as it is.

    Args:
        network: Of a space with this encoder.
        encoder: Which knows how others name its weights.
        weights: ``"imagenet"`` for those of a package, or the path of a file: ``.safetensors``, or what `torch.save`
            wrote.
        mean: Of R, G, B, where white is 1: subtracted from the images that the network will read.
        std: What they are divided by.

    Returns:
        The SHA-256 of the file.

    Raises:
        MissingExtra: If the package is not installed.
        HwnasError: If the encoder has no such weights, the file cannot be read, or does not fit in a name or a shape.
    """
    path = packaged(encoder) if weights == PACKAGED else Path(weights)
    try:
        content = path.read_bytes()
    except OSError as e:
        raise HwnasError(f"cannot read the weights of an encoder at {path}: {e.strerror}") from e
    theirs = read_state(content, path)
    source = source_of(encoder, theirs, path)
    own = network.encoder.state_dict()
    network.encoder.load_state_dict(converted(own, theirs, source, mean, std, path), strict=False)  # counts may lack
    return sha256(content)


def packaged(encoder: Encoder) -> Path:
    """Return the file of the package that has ImageNet weights of an encoder.

    Raises:
        MissingExtra: If it is not installed.
        HwnasError: If there is no such package.
    """
    package = next((s.package for s in encoder.sources() if s.package), None)
    if package is None:
        known = " or ".join(s.title for s in encoder.sources())
        raise HwnasError(
            f"no package has ImageNet weights of this {encoder.name!r} encoder; "
            + (f"name a file of {known} instead" if known else "train without encoder_weights")
        )
    where = require(package, EXTRA).__file__
    assert where is not None, f"{package} has no file"
    files = sorted(Path(where).parent.rglob("*.pth"))
    if len(files) != 1:
        raise HwnasError(f"{package} was expected to have one .pth file, it has {len(files)}; install it again")
    return files[0]


def read_state(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights, by name; nothing else in it is run or kept.

    Args:
        content: Of the file.
        path: For messages; its ending tells the format.

    Raises:
        HwnasError: If it is damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols of pickle: what cannot be read is an error
            loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise HwnasError(
            f"{path} holds more than tensors, which could run code here, or is damaged; save its state_dict alone, as "
            ".safetensors or by torch.save"
        ) from e
    except (*DAMAGE, SafetensorError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise HwnasError(f"{path} is no file of weights that can be read: {reason}; get it again") from e
    for key in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise HwnasError(f"{path} holds no tensors by name, but {type(loaded).__name__}; save a state_dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise HwnasError(f"{path} holds {name!r}, which is {type(value).__name__} and no tensor; save a state_dict")
    # What was trained on several GPUs has another name in front.
    if all(name.startswith("module.") for name in loaded):
        loaded = {name.removeprefix("module."): value for name, value in loaded.items()}
    return dict(loaded)


def source_of(encoder: Encoder, theirs: Mapping[str, Tensor], path: Path) -> Source:
    """Return the source whose names a file has, told by what reads the image.

    Raises:
        HwnasError: If there is none.
    """
    sources = encoder.sources()
    for source in sources:
        if f"{source.names[FIRST[0]]}.weight" in theirs:
            return source
    if not sources:
        raise HwnasError(f"the encoder {encoder.name!r} takes no weights of others: train without encoder_weights")
    expected = ", or ".join(f"{s.names[FIRST[0]]}.weight of {s.title}" for s in sources)
    first = next(iter(theirs), "none")
    raise HwnasError(
        f"{path} has no weights of the encoder {encoder.name!r}: expected {expected}; its first name is {first}"
    )


def converted(
    own: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    source: Source,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    path: Path,
) -> dict[str, Tensor]:
    """Return weights of others by our names, for images normalised as here and BatchNorms of torch's epsilon.

    Their variances get the difference of the epsilons, so that inference is the same. The first convolution gets the
    scale of the images, and the BatchNorm after it what the shift adds up to under the whole kernel. At the border that
    is not exact: zeros there stand for the mean of the images here, and stood for that of the source.

    Args:
        own: The encoder's part of a network, by name.
        theirs: What a file holds.
        source: Whose names these are.
        mean: Subtracted from the images here.
        std: Divided by.
        path: For messages.

    Raises:
        HwnasError: If a name is missing or left over, or a shape differs; names the first of them.
    """
    out, used = dict[str, Tensor](), set[str]()
    for name, tensor in own.items():
        module, _, kind = name.rpartition(".")
        there = f"{source.names[module]}.{kind}"
        if there not in theirs:
            if name.endswith(COUNT):
                continue
            raise HwnasError(f"{path} lacks {there}, which {source.title} has for {name}; take weights of this encoder")
        value = theirs[there]
        if value.shape != tensor.shape:
            raise HwnasError(
                f"{there} in {path} has the shape {tuple(value.shape)}, {name} here {tuple(tensor.shape)}; take "
                "weights of an encoder of this size"
            )
        used.add(there)
        out[name] = value.to(tensor.dtype) if name.endswith(COUNT) else value.float()
    over = [name for name in theirs if name not in used and not name.startswith(source.ignored)]
    if over:
        raise HwnasError(
            f"{path} has {over[0]} ({len(over)} names like it are left over), which this encoder has no part for; take "
            "weights of an encoder of this size"
        )
    for name in [n for n in out if n.endswith(".running_var")]:
        out[name] = out[name] + (source.eps - nn.BatchNorm2d(1).eps)
    first, after = f"{FIRST[0]}.weight", f"{FIRST[1]}.running_mean"
    scale, shift = _normalisation(source, mean, std)
    kernel = out[first]
    out[after] = out[after] - torch.einsum("oihw,i->o", kernel.double(), shift).float()
    out[first] = (kernel.double() * scale[:, None, None]).float()
    return out


def _normalisation(source: Source, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (3,) each, that make of an image as it is here one as the source had it."""
    m, s, m0, s0 = (torch.tensor(v, dtype=torch.float64) for v in (mean, std, source.mean, source.std))
    return s / s0, (m - m0) / s0
