"""Where networks compute: a device that was asked for, what goes there, and the one way back to the host.

Networks, their optimisers and their batches are on the device. What decides about them is on the host: the logits of a
search, its relaxation, cost and guards are tiny, and what they say is needed there. A step must not wait for the
device, so nothing of it is read but by `read`, which tests count and replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.runtime.measuring.limits import usable_cpus

AUTO = "auto"
CPU = torch.device("cpu")
Precision = Literal["fp32", "bf16", "fp16"]
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Module = TypeVar("Module", bound=nn.Module)


def open_device(name: str = AUTO) -> torch.device:
    """Return the device of a name: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        HwnasError: If there is no such device here; says what to do.
    """
    kind, _, index = name.partition(":")
    if name == AUTO:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda") or (":" in name and (kind == "cpu" or not index.isdecimal())):
        raise HwnasError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        if torch.get_num_threads() > (most := usable_cpus()):  # by default it starts one for each CPU of the machine
            torch.set_num_threads(most)
        return CPU
    if not torch.cuda.is_available():
        why = "this PyTorch was built without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"
        raise HwnasError(f"there is no device {name!r} here: {why}; use --device cpu, or see: hwnas doctor")
    n = torch.cuda.device_count()
    number = int(index) if index else torch.cuda.current_device()
    if number >= n:
        raise HwnasError(f"there is no device {name!r} here, only cuda:0 to cuda:{n - 1}; use one of these")
    return torch.device("cuda", number)


def title(device: torch.device) -> str:
    """Return what a device is called in summaries and records: ``"cpu"``, ``"cuda:0 (NVIDIA H200)"``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def read(tensor: Tensor) -> NDArray[Any]:
    """Return the values of a tensor on the host: the one place where a step may wait for its device."""
    out: NDArray[Any] = tensor.detach().cpu().numpy()
    return out


@dataclass(frozen=True)
class Context:
    """Where and in what networks compute.

    Attributes:
        device: Of weights, optimisers and batches.
        precision: ``"bf16"`` and ``"fp16"`` compute what can be in these (autocast); weights stay float32.
        channels_last: Whether maps are channels last in memory.
    """

    device: torch.device = CPU
    precision: Precision = "fp32"
    channels_last: bool = True

    def autocast(self) -> AbstractContextManager[Any]:
        """Return what passes are computed in; devices without bfloat16 know no autocast, so it is off by absence."""
        half = _HALF.get(self.precision)
        return nullcontext() if half is None else torch.autocast(self.device.type, half)

    def module(self, module: Module) -> Module:
        """Move a network to the device, in the layout of its maps; it is changed in place and returned."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        moved: Module = module.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]  # an overload without it
        return moved

    def tensor(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device, without waiting where its memory is pinned."""
        return tensor.to(self.device, non_blocking=True)

    def batch(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return images and labels on the device."""
        images, labels = batch
        images = self.tensor(images)  # channels last
        return images if self.channels_last else images.contiguous(), self.tensor(labels)

    def mixture(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what multiplies candidates, made on the host, as the network reads it.

        All groups go in one copy, and their gradient comes back in one, by `read`.
        """
        if self.device.type == "cpu":
            return dict(weights)
        flat = torch.cat([w.reshape(-1) for w in weights.values()])
        sent: Tensor = _Sent.apply(flat, self)  # type: ignore[no-untyped-call]
        parts = torch.split(sent, [w.numel() for w in weights.values()])
        return {k: part.view(w.shape) for (k, w), part in zip(weights.items(), parts, strict=True)}


ON_HOST = Context()


class _Sent(torch.autograd.Function):
    """A copy on a device whose gradient is read back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, context: Context) -> Tensor:
        return context.tensor(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(np.ascontiguousarray(read(grad))), None
