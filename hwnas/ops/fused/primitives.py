"""What a fused cell is computed of, forward and backward, in two implementations: C++ for CPUs, and torch anywhere.

Maps are (N, H, W, C), contiguous: channels last. "Same" padding, ``ceil(size / stride)``. BatchNorm has no affine
parameters and uses the statistics of the batch.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

EPS = 1e-5  # of torch.nn.BatchNorm2d


class Moments(NamedTuple):
    """What the way back through `Primitives.normed_linear` needs.

    Attributes:
        mean_z: (G, 1, A).
        cov_z: (G, A, A).
        mean: Of ``z w^T``, (M, B).
        var: Of ``z w^T``, biased, (M, B).
    """

    mean_z: Tensor
    cov_z: Tensor
    mean: Tensor
    var: Tensor


class Primitives(Protocol):
    """The computations a fused cell needs.

    Attributes:
        processes: Over how many of them statistics are taken.
    """

    processes: int

    def depthwise(self, x: Tensor, weight: Tensor, dilation: int, stride: int) -> Tensor:
        """Convolve the ReLU of maps depthwise, each with several kernels.

        Args:
            x: (G, N, H, W, C).
            weight: (G, M, C, 1, k, k).
            dilation: Of the kernels.
            stride: 1 or 2.

        Returns:
            (G, M, N, H', W', C).
        """

    def depthwise_data(self, x: Tensor, weight: Tensor, dilation: int, stride: int, g: Tensor, into: Tensor) -> None:
        """Add the gradient of x, given that of the result (G, M, N, H', W', C), to `into`, of the shape of x."""

    def depthwise_weight(self, x: Tensor, weight: Tensor, dilation: int, stride: int, g: Tensor) -> Tensor:
        """Return the gradient of `weight`, which is read for its shape."""

    def convolve(self, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        """Convolve the ReLU of a map with several full kernels.

        Args:
            x: (N, H, W, C).
            weight: (M, C', C, k, k).
            dilation: Of the kernels.

        Returns:
            (M, N, H, W, C').
        """

    def convolve_data(
        self, x: Tensor, weight: Tensor, dilation: int, g: Tensor, into: Tensor | None, parameters: bool
    ) -> Tensor | None:
        """Add the gradient of x, given that of the result, to `into`, if any; return that of `weight`, if asked for."""

    def max_pool(self, x: Tensor, stride: int, out: Tensor) -> Tensor:
        """Write the 3x3 maximum of x (N, H, W, C) to `out`; return where the maxima are, for `max_pool_data`."""

    def max_pool_data(self, g: Tensor, which: Tensor, stride: int, into: Tensor) -> None:
        """Add the gradient of x to `into`."""

    def avg_pool(self, x: Tensor, stride: int, out: Tensor) -> None:
        """Write the 3x3 mean of x (N, H, W, C), over what lies inside, to `out`."""

    def avg_pool_data(self, g: Tensor, stride: int, into: Tensor) -> None:
        """Add the gradient of x to `into`."""

    def batch_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise x (G, rows, C) in place, over the rows of each group; return mean and biased variance (G, C)."""

    def batch_norm_data(self, y: Tensor, var: Tensor, g: Tensor) -> None:
        """Turn gradients of `batch_norm`'s result y into those of its input, in place."""

    def multiply(self, x: Tensor, w: Tensor) -> Tensor:
        """Return x (G, rows, A) times w (G, A, B)."""

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the transpose of a (G, rows, A) times b (G, rows, B)."""

    def normed_linear(self, z: Tensor, w: Tensor, p: Tensor, out: Tensor, bias: Tensor) -> Moments:
        """Add ``p * BN(z w^T)``, less its constant, to `out`, and the constant to `bias`.

        Mean and variance of ``z w^T`` follow from those of z, so that it is never computed on its own.

        Args:
            z: (M or 1, rows, A).
            w: (M, B, A).
            p: (M,).
            out: (M, rows, B), possibly some columns of a wider matrix.
            bias: (M, B), likewise.
        """

    def normed_linear_data(
        self, z: Tensor, w: Tensor, p: Tensor, kept: Moments, g: Tensor, sums: Tensor, parameters: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the gradients of p, of w if `parameters`, and of z as each edge sees it (M, rows, A).

        Args:
            z: As given to `normed_linear`.
            w: Likewise.
            p: Likewise.
            kept: What it returned.
            g: The gradient of `out`.
            sums: Of g over rows, (M, B).
            parameters: Whether that of w is wanted.
        """

    def combine(self, weights: Tensor, x: Tensor, bias: Tensor, into: Tensor) -> None:
        """Add ``sum over k of weights[m, k] * x[k] + bias[m]`` to `into`.

        Args:
            weights: (M, K).
            x: (K, rows, C).
            bias: (M, C).
            into: (M, rows, C).
        """

    def combine_data(self, weights: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, weights and bias, given that of `into`."""
