"""Compiling CUDA sources at run time, by NVIDIA's NVRTC: needs its library, no GPU and no CUDA toolkit."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
from functools import cache
from pathlib import Path

from hwnas.errors import HwnasError, MissingExtra

OPTIONS = ("--std=c++17",)


def compile_cubin(source: str, name: str, compute_capability: tuple[int, int]) -> bytes:
    """Compile a CUDA source for one kind of GPU.

    Args:
        source: One translation unit.
        name: What messages call it.
        compute_capability: (major, minor) of the GPU, (8, 6) for SM 86.

    Returns:
        A cubin.

    Raises:
        MissingExtra: If there is no NVRTC.
        HwnasError: If it does not compile; with the compiler's own message.
    """
    library = _library()
    program = ctypes.c_void_p()
    _check(
        library,
        library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None),
        f"create a program of {name}",
    )
    try:
        major, minor = compute_capability
        options = [f"--gpu-architecture=sm_{major}{minor}".encode(), *(o.encode() for o in OPTIONS)]
        code = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if code:
            log = _fetch(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            raise HwnasError(f"{name} does not compile for SM {major}{minor} ({_message(library, code)}): {log}")
        return _fetch(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def version() -> tuple[int, int]:
    """Return (major, minor) of NVRTC.

    Raises:
        MissingExtra: If there is none.
    """
    library, major, minor = _library(), ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "tell its version")
    return major.value, minor.value


def _fetch(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, library[f"nvrtcGet{what}Size"](program, ctypes.byref(size)), f"give its {what}")
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, library[f"nvrtcGet{what}"](program, buffer), f"give its {what}")
    return buffer.raw


def _check(library: ctypes.CDLL, code: int, doing: str) -> None:
    if code:
        raise HwnasError(f"NVRTC cannot {doing}: {_message(library, code)}")


def _message(library: ctypes.CDLL, code: int) -> str:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return bytes(library.nvrtcGetErrorString(code)).decode()


@cache
def _library() -> ctypes.CDLL:
    """Load NVRTC: of a pip package of NVIDIA, newest first, or of the system."""
    paths = [str(p) for p in sorted(_packaged(), key=_release, reverse=True)]
    system = ctypes.util.find_library("nvrtc")
    for path in [*paths, *([system] if system else [])]:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise MissingExtra("there is no NVRTC to compile CUDA kernels with; run: pip install 'hwnas[cuda]'")


def _packaged() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    return [p for folder in folders for p in folder.glob("*/lib/libnvrtc.so.*")]


def _release(path: Path) -> int:
    found = re.search(r"\.so\.(\d+)", path.name)
    return int(found[1]) if found else 0
