"""Which GPU is here, and which engines can use it. Each is asked in a process of its own, which may crash or hang.

Prints one JSON object: of the GPU without arguments, else of an engine in a precision.

example: python scripts/bench/gpu_host.py tensorrt fp16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from typing import Any

from hwnas.errors import HwnasError
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.gpu import Gpu
from hwnas.runtime.measuring.child import last_words, with_hwnas
from hwnas.runtime.measuring.device import provenance

# What is measured, what matters most first.
ORDER = (
    ("tensorrt", "fp16"),
    ("tensorrt_rtx", "fp16"),
    ("torch-cuda-graph", "fp16"),
    ("tensorrt", "fp32"),
    ("tensorrt_rtx", "fp32"),
    ("onnxruntime-cuda", "fp16"),
    ("torch-cuda-graph", "fp32"),
    ("torch-cuda-compiled", "fp16"),
    ("torch-cuda", "fp16"),
)
LIMIT_S = 180.0


def gpu() -> dict[str, Any]:
    """Return what the first GPU is: ``device`` and ``options``.

    Raises:
        HwnasError: If there is none.
    """
    found = _ask()
    if "reason" in found:
        raise HwnasError(found["reason"])
    return found


def engine(name: str, precision: str) -> dict[str, Any]:
    """Return what an engine is: ``where`` and ``merges``, or ``reason``, why it cannot be used here."""
    return _ask(name, precision)


def pair(text: str) -> tuple[str, str]:
    """Read ``ENGINE:PRECISION``; for argparse."""
    name, colon, precision = text.rpartition(":")
    if not (name and colon and precision):
        raise argparse.ArgumentTypeError(f"expected ENGINE:PRECISION, such as tensorrt:fp16, got {text!r}")
    return name, precision


def size(text: str) -> tuple[int, int]:
    """Read ``HEIGHTxWIDTH``; for argparse."""
    parts = text.split("x")
    if len(parts) != 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 1024x2048, got {text!r}")
    return int(parts[0]), int(parts[1])


def _ask(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    with tempfile.TemporaryFile() as log:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=log, env=with_hwnas(), timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return {"reason": f"it did not answer in {LIMIT_S:g} s{last_words(log)}"}
        lines = done.stdout.decode(errors="replace").splitlines()
        if done.returncode or not lines:
            return {"reason": f"the process that asked it ended with {done.returncode}{last_words(log)}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main() -> None:
    """Answer for this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", nargs="?", help="a name that hwnas doctor lists")
    parser.add_argument("precision", nargs="?", default="fp32", help="fp32, tf32 or fp16 (%(default)s)")
    args = parser.parse_args()
    found: dict[str, Any]
    try:
        if args.engine is None:
            here = Gpu()
            found = {"device": here.device(), "options": here.options()}
            here.close()
        else:
            opened = open_engine(args.engine, precision=args.precision)
            found = {"where": provenance(opened), "merges": opened.capabilities.merges}
    except HwnasError as e:
        found = {"reason": " ".join(str(e).split())}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
