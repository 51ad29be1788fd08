"""Recipes: the systems, as data over shared parts."""

from hwnas.recipes import cifar, darts
from hwnas.recipes.base import Recipe, get, names

__all__ = ["Recipe", "cifar", "darts", "get", "names"]
