"""The CUDA kernels compiled for the host: every thread of a grid runs in turn."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hwnas.runtime.cuda.kernels import KERNELS, Kernel

# An address that is not aligned, or one outside of the arrays, ends the process.
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function")
SANITIZE = ("-fsanitize=undefined", "-fno-sanitize-recover")


def host_kernels(folder: Path, sanitize: bool = True) -> Path:
    """Compile all kernels into one library.

    Of each it has ``host_NAME(gx, gy, gz, threads, arguments..)``, and for a driver ``fake_NAME((gx, gy, gz, threads),
    pointers to arguments)`` and ``sizes_NAME``, the sizes of the arguments and a zero.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile the kernels for the host with")
    files: dict[str, list[Kernel]] = {}
    for kernel in KERNELS.values():
        files.setdefault(kernel.file, []).append(kernel)
    for name, kernels in files.items():
        text = "#define HWNAS_HOST\n" + kernels[0].source() + "".join(_driver(k) for k in kernels)
        (folder / f"{name}.cpp").write_text(text)
    sources = [str(folder / f"{name}.cpp") for name in files]
    out = folder / "kernels.so"
    flags = [*FLAGS, *(SANITIZE if sanitize else ())]
    subprocess.run([compiler, *flags, "-shared", "-fPIC", *sources, "-o", str(out)], check=True)
    return out


def _driver(kernel: Kernel) -> str:
    """Return functions that run every thread of a grid."""
    parameters = ", ".join(f"{kind} a{i}" for i, kind in enumerate(kernel.parameters))
    arguments = ", ".join(f"a{i}" for i in range(len(kernel.parameters)))
    pointed = ", ".join(f"*({kind} *)a[{i}]" for i, kind in enumerate(kernel.parameters))
    sizes = ", ".join(f"sizeof({kind})" for kind in kernel.parameters)
    return f"""
extern "C" void host_{kernel.name}(unsigned gx, unsigned gy, unsigned gz, unsigned threads, {parameters}) {{
    gridDim = {{gx, gy, gz}};
    blockDim = {{threads, 1, 1}};
    for (blockIdx.z = 0; blockIdx.z < gz; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gy; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gx; blockIdx.x++)
                for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) {kernel.name}({arguments});
}}
extern "C" void fake_{kernel.name}(const unsigned *shape, void **a) {{
    host_{kernel.name}(shape[0], shape[1], shape[2], shape[3], {pointed});
}}
extern "C" const int sizes_{kernel.name}[] = {{{sizes}, 0}};
"""
