"""The contracts of hwnas, held by the extensions; run by tests/test_extension.py in a process of their own."""

from __future__ import annotations

import numpy as np
import pytest

import tests.extension.dataset
import tests.extension.op
import tests.extension.recipe  # noqa: F401 - what is imported registers itself
from hwnas import recipes
from hwnas.data import open_dataset, registered_datasets, task_of
from hwnas.recipes import Recipe
from hwnas.records import decode, encode
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.base import Engine
from hwnas.spaces import Space, registered_encoders, registered_heads
from tests.contracts import EngineContract, PairContract
from tests.test_engines import op_case

__all__ = ["op_case"]  # a fixture

RECIPES = ("with-encoder", "with-head", "with-all")


@pytest.mark.parametrize("name", RECIPES)
class TestPairs(PairContract):
    @pytest.fixture
    def space(self, name: str) -> Space:
        space = recipes.get(name).space
        # The contract draws images of hwnas' own data, of eleven classes.
        return Space(space.encoder, space.head, 11)


class TestEngine(EngineContract):
    COMPUTES = False

    @pytest.fixture
    def engine(self) -> Engine:
        return open_engine("tests.extension.engine:Tortoise")


@pytest.mark.parametrize("name", [*RECIPES, "with-random", "with-stages"])
def test_a_recipe_is_stored_whole(name: str) -> None:
    own = recipes.get(name)
    assert decode(encode(own, Recipe), Recipe) == own


def test_they_are_registered() -> None:
    assert "ladder" in registered_encoders()
    assert "fuse" in registered_heads()
    assert "stripes" in registered_datasets()


def test_the_dataset_is_one() -> None:
    data, again = (open_dataset("stripes", "train", (20, 30)) for _ in range(2))
    assert task_of(data).name == "segmentation"
    for i in range(len(data)):
        assert np.array_equal(data[i].image, again[i].image)
        assert data[i].label.max() < len(data.classes)
