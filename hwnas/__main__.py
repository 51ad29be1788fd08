"""The `hwnas` command: looks whether what the verbs need is there, so that a bare install gets an answer."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path[0] and sys.path[0] == os.getcwd():
    sys.path.append(sys.path.pop(0))  # `-m` puts the working folder first: a statistics.py there is not what is meant

from importlib.util import find_spec

from hwnas.ending import ended

PACKAGES = ("torch", "onnx", "scipy", "highspy", "safetensors", "tyro", "rich", "PIL", "fvcore")


def main() -> int:
    """Run the command line; exit code 2 if the base install alone is there."""
    for package in PACKAGES:
        if find_spec(package) is None:
            print(f"hwnas: {package} is not installed; run: pip install 'hwnas[search]'", file=sys.stderr)
            return 2

    def run() -> int:
        from hwnas.cli import main as verbs

        return verbs()

    return ended(run, "hwnas")  # also a package that is there and cannot be imported


if __name__ == "__main__":
    sys.exit(main())
