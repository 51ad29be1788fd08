"""The `hwnas` command: looks for what the verbs need before it imports them, so that a bare install gets an answer."""

from __future__ import annotations

import sys

from hwnas.errors import MissingExtra
from hwnas.optional import require


def main() -> int:
    """Run the command line; exit code 2 if the base install alone is there."""
    try:
        for package in ("torch", "onnx", "scipy", "highspy", "safetensors", "tyro", "rich", "PIL"):
            require(package, extra="search")
    except MissingExtra as e:
        print(f"hwnas: {e}", file=sys.stderr)
        return 2
    from hwnas.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
