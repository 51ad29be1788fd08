"""The `hwnas` command: looks whether what the verbs need is there, so that a bare install gets an answer."""

from __future__ import annotations

import sys
from importlib.util import find_spec

PACKAGES = ("torch", "onnx", "scipy", "highspy", "safetensors", "tyro", "rich", "PIL", "fvcore")


def main() -> int:
    """Run the command line; exit code 2 if the base install alone is there."""
    for package in PACKAGES:
        if find_spec(package) is None:
            print(f"hwnas: {package} is not installed; run: pip install 'hwnas[search]'", file=sys.stderr)
            return 2
    from hwnas.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
