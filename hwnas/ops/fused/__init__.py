"""Cells of a supernet computed as one function, with the same result; in torch, or in C++ on CPUs."""

from hwnas.ops.fused.branches import frozen_statistics
from hwnas.ops.fused.cell import Fan, Layout, fused_cell

__all__ = ["Fan", "Layout", "frozen_statistics", "fused_cell"]
