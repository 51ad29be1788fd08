"""Write down the Python interface of TensorRT releases, read from their real bindings; needs no GPU and no TensorRT.

The bindings are wheels of their own that link to libraries which are not on the package index. Here they are loaded
over stub libraries, so that their classes can be looked at. `tests/test_trt_api.py` makes doubles of what this writes
and drives our code with them. Needs pip, gcc and binutils.

example: python scripts/trt_api.py --out tests/data
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RELEASES = {
    "tensorrt-8.6.1": "tensorrt-bindings==8.6.1",
    "tensorrt-10.0.1": "tensorrt-cu12-bindings==10.0.1",
    "tensorrt-10.16.1": "tensorrt-cu12-bindings==10.16.1.11",
    "tensorrt-11.4.0": "tensorrt-cu12-bindings==11.4.0.106",
    "tensorrt_rtx-1.7.1": "tensorrt-rtx-cu13-bindings==1.7.1.116",
}
OTHERS = ("Py", "_Py", "_ZSt", "_ZNSt", "_ZNKSt", "_ZNSs", "_ITM", "__")  # of Python and the C++ library
NVIDIA = re.compile(r"nvinfer|nvonnx|nvparsers|tensorrt")
READ = """
import ctypes, importlib.machinery, importlib.util, json, os, sys
extension, *libraries = sys.argv[1:]
sys.setdlopenflags(os.RTLD_LAZY)
for library in libraries:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
name = os.path.basename(extension).partition(".")[0]
loader = importlib.machinery.ExtensionFileLoader(name, extension)
module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
loader.exec_module(module)
out = {}
def read(name, kind):
    members = sorted(getattr(kind, "__members__", {}))
    found = {"members": members, "methods": [], "properties": []}
    for key in dir(kind):
        value = getattr(kind, key)
        if key.startswith("_") or key in members:
            continue
        if isinstance(value, type):
            read(f"{name}.{key}", value)
        elif not isinstance(value, kind):
            sort = "properties" if isinstance(value, property) else "methods" if callable(value) else "members"
            found[sort].append(key)
    out[name] = found
for name, kind in vars(module).items():
    if isinstance(kind, type):
        read(name, kind)
json.dump(out, sys.stdout)
"""


def read(requirement: str, folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return members, methods and properties of all classes of a bindings package, by name."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    (extension,) = folder.glob("*_bindings/tensorrt*.so")
    listed = _lines("readelf", "-d", str(extension))
    needed = [m[1] for line in listed if (m := re.search(r"NEEDED.*\[(.+)\]", line)) and NVIDIA.search(m[1])]
    symbols = [line.split()[-1] for line in _lines("nm", "-D", "--undefined-only", str(extension))]
    missing = [s for s in symbols if "@" not in s and (NVIDIA.search(s) or not s.startswith(OTHERS))]
    (folder / "stub.c").write_text("".join(f"void *{s}(void) {{ return 0; }}\n" for s in missing))
    for i, name in enumerate(needed):
        source = [str(folder / "stub.c")] if i == 0 else ["-x", "c", "/dev/null"]
        subprocess.run(["gcc", "-w", "-fno-builtin", "-shared", "-fPIC", "-o", str(folder / name), *source], check=True)
    command = [sys.executable, "-c", READ, str(extension), *(str(folder / name) for name in needed)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return found


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def main() -> None:
    """Write one JSON file for each release."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for release, requirement in RELEASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = read(requirement, Path(folder))
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kind)}" for name, kind in sorted(found.items()))
        path = args.out / f"{release}.json"
        path.write_text(f"{{\n{lines}\n}}\n")
        print(f"{path}: {len(found)} classes")


if __name__ == "__main__":
    main()
