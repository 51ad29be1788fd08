"""Progress under its former name."""

from hwnas.progress import Update, ignore

__all__ = ["Update", "ignore"]
