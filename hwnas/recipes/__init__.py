"""Recipes: the systems, as data over shared parts."""

from hwnas.recipes import autodeeplab, baselines, cas, cifar, darts, dpc, encoders, gas, trials
from hwnas.recipes.base import Recipe, get, names

__all__ = [
    "Recipe",
    "autodeeplab",
    "baselines",
    "cas",
    "cifar",
    "darts",
    "dpc",
    "encoders",
    "gas",
    "get",
    "names",
    "trials",
]
