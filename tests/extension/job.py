"""The whole job of a recipe of the extensions: python -m tests.extension.job RECIPE ENGINE, in an empty folder."""

from __future__ import annotations

import sys

import tests.extension.dataset
import tests.extension.op
import tests.extension.recipe  # noqa: F401 - what is imported registers itself
from hwnas.cli import main


def run(recipe: str, engine: str) -> int:
    """Run each verb; return the first exit code that is not 0."""
    verbs = [["profile", recipe, "--engine", engine], ["search", recipe]]
    verbs += [[verb, recipe] for verb in ("train", "export", "validate", "price")]
    return next((code for verb in verbs if (code := main(verb))), 0)


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
