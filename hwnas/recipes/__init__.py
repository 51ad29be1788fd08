"""Recipes: the systems, as data over shared parts."""

from hwnas.recipes import darts
from hwnas.recipes.base import Recipe, get, names

__all__ = ["Recipe", "darts", "get", "names"]
