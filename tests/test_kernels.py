"""CUDA kernels: they compile for every GPU we name, and compute what their references do.

What runs here is the same source compiled for the host, every thread of the grid in turn.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from hwnas.errors import HwnasError, MissingExtra
from hwnas.images import normalise
from hwnas.resources import kernels_dir
from hwnas.runtime.cuda import nvrtc
from hwnas.runtime.cuda.kernels import (
    KERNELS,
    copy_grid,
    preprocess,
    preprocess_grid,
    upsample_argmax,
    upsample_argmax_grid,
)
from hwnas.runtime.cuda.kernels import upsample as upsampled
from tests.host_kernels import host_kernels

TARGETS = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
CTYPES = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32, "float": ctypes.c_float}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Launch = Callable[..., None]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Return ``launch(name, grid, *arguments)`` on the host; arrays are passed by their address."""
    library = ctypes.CDLL(str(host_kernels(tmp_path_factory.mktemp("kernels"))))

    def run(name: str, grid: tuple[int, int, int], *arguments: NDArray[np.generic] | float) -> None:
        kernel = KERNELS[name]
        values = [ctypes.c_uint(v) for v in (*grid, kernel.threads)]
        for kind, given in zip(kernel.parameters, arguments, strict=True):
            if isinstance(given, np.ndarray):
                assert kind.endswith("*")
                values.append(ctypes.c_void_p(given.ctypes.data))  # type: ignore[arg-type]
            else:
                values.append(CTYPES[kind](given))  # type: ignore[arg-type]
        library[f"host_{name}"](*values)

    return run


def guarded(shape: tuple[int, ...], dtype: type[np.generic]) -> tuple[NDArray[np.generic], Callable[[], bool]]:
    """Return an array aligned to 16 bytes, and a function that tells whether the bytes around it are untouched."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 160, 0xA5, np.uint8)
    start = 64 + (-(memory.ctypes.data + 64)) % 16
    array = memory[start : start + size].view(dtype).reshape(shape)
    return array, lambda: bool((memory[:start] == 0xA5).all() and (memory[start + size :] == 0xA5).all())


class TestPreprocess:
    @pytest.mark.parametrize("shape", [(1, 8, 12, 3), (2, 5, 7, 3), (1, 1, 1, 3), (3, 33, 130, 3), (1, 2, 1031, 3)])
    @pytest.mark.parametrize(("name", "dtype"), [("preprocess_f32", np.float32), ("preprocess_f16", np.float16)])
    def test_equals_its_reference(
        self, launch: Launch, shape: tuple[int, ...], name: str, dtype: type[np.floating]
    ) -> None:
        n, height, width, _ = shape
        image, _ = guarded(shape, np.uint8)
        image[...] = np.random.default_rng(sum(shape)).integers(0, 256, shape)
        out, untouched = guarded((n, 3, height, width), dtype)
        gain = (1 / np.asarray(STD, np.float32)).tolist()
        launch(name, preprocess_grid(shape), image, out, height * width, *MEAN, *gain)
        expected = preprocess(image.astype(np.uint8), MEAN, STD, dtype)
        tolerance = 1e-6 if dtype is np.float32 else 2.0**-10  # one unit in the last place of a half
        np.testing.assert_allclose(out.astype(float), expected.astype(float), rtol=tolerance, atol=1e-6)
        assert untouched()

    def test_its_reference_is_what_networks_are_trained_on(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3)).astype(np.uint8)
        got = preprocess(image, MEAN, STD)
        for planes, one in zip(got, image, strict=True):
            np.testing.assert_array_equal(planes, normalise(one, MEAN, STD))
        np.testing.assert_allclose(got, ((image / 255 - MEAN) / STD).transpose(0, 3, 1, 2), rtol=0, atol=1e-6)

    def test_halves_are_rounded_as_numpy_does(self, launch: Launch) -> None:
        """All 256 values of a colour, with gains that lead to infinity, to subnormal numbers and to zero."""
        image, _ = guarded((1, 16, 16, 3), np.uint8)
        image[...] = np.arange(256).reshape(1, 16, 16, 1)
        for gain in (1.0, 1e5, 7e4, 3e-5, 1e-7, 1e-9):
            out, _ = guarded((1, 3, 16, 16), np.float16)
            launch("preprocess_f16", preprocess_grid(image.shape), image, out, 256, 0.1, 0.5, 0.9, *[gain] * 3)
            exact, _ = guarded((1, 3, 16, 16), np.float32)
            launch("preprocess_f32", preprocess_grid(image.shape), image, exact, 256, 0.1, 0.5, 0.9, *[gain] * 3)
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(out, exact.astype(np.float16))


class TestUpsampleArgmax:
    @pytest.mark.parametrize(
        ("shape", "size"),
        [
            ((1, 19, 16, 32), (128, 256)),
            ((2, 11, 7, 9), (28, 36)),
            ((1, 5, 13, 17), (97, 131)),
            ((1, 256, 3, 3), (5, 1031)),
            ((1, 1, 4, 4), (16, 16)),
            ((1, 3, 1, 1), (9, 10)),
            ((2, 4, 6, 8), (6, 8)),
            ((1, 4, 20, 30), (7, 11)),
        ],
    )
    @pytest.mark.parametrize(
        ("name", "dtype"), [("upsample_argmax_f32", np.float32), ("upsample_argmax_f16", np.float16)]
    )
    def test_equals_its_reference(
        self,
        launch: Launch,
        shape: tuple[int, int, int, int],
        size: tuple[int, int],
        name: str,
        dtype: type[np.floating],
    ) -> None:
        scores, _ = guarded(shape, dtype)
        scores[...] = np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)
        labels, untouched = guarded((shape[0], *size), np.uint8)
        launch(name, upsample_argmax_grid(shape[0], size), scores, labels, *shape[1:], *size)
        expected = upsample_argmax(scores, size)  # type: ignore[arg-type]
        differ = labels != expected
        if differ.any():
            best = np.sort(upsampled(scores, size), axis=1)  # type: ignore[arg-type]
            assert (best[:, -1] - best[:, -2])[differ].max() < 1e-5
        assert differ.mean() < 1e-3
        assert untouched()

    def test_the_first_of_equal_scores_wins(self, launch: Launch) -> None:
        scores, _ = guarded((1, 4, 2, 2), np.float32)
        scores[...] = np.array([0, 3, 3, 1], np.float32).reshape(1, 4, 1, 1)
        labels, _ = guarded((1, 8, 8), np.uint8)
        launch("upsample_argmax_f32", upsample_argmax_grid(1, (8, 8)), scores, labels, 4, 2, 2, 8, 8)
        assert (labels == 1).all()

    @pytest.mark.parametrize("size", [(28, 36), (23, 41), (4, 5)])
    def test_its_reference_is_what_networks_end_with(self, size: tuple[int, int]) -> None:
        scores = np.random.default_rng(1).standard_normal((2, 6, 7, 9)).astype(np.float32)
        expected = F.interpolate(torch.from_numpy(scores), size=size, mode="bilinear", align_corners=False).numpy()
        np.testing.assert_allclose(upsampled(scores, size), expected, rtol=0, atol=2e-6)


def test_l2_flush_fills_a_buffer_and_nothing_else(launch: Launch) -> None:
    buffer, untouched = guarded((10_007,), np.uint32)
    launch("l2_flush", (3, 1, 1), buffer, buffer.size, 0x12345678)
    assert (buffer == 0x12345678).all()
    assert untouched()


@pytest.mark.parametrize("n", [1, 3, 4, 1023, 1024, 10_007])
@pytest.mark.parametrize("grid", [None, (3, 1, 1)])
def test_copy_copies_a_buffer_and_nothing_else(launch: Launch, n: int, grid: tuple[int, int, int] | None) -> None:
    there, unread = guarded((n,), np.uint32)
    there[...] = np.random.default_rng(n).integers(0, 1 << 32, n)
    back, untouched = guarded((n,), np.uint32)
    launch("copy", grid or copy_grid(n), there, back, n)
    np.testing.assert_array_equal(back, there)
    assert untouched()
    assert unread()


class TestCompiled:
    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("name", KERNELS)
    def test_for_each_gpu(self, name: str, target: tuple[int, int]) -> None:
        cubin = nvrtc.compile_cubin(KERNELS[name].source(), name, target)
        assert cubin.startswith(b"\x7fELF")
        assert name.encode() in cubin

    def test_the_compiler_tells_its_version(self) -> None:
        assert nvrtc.version() >= (12, 0)

    def test_an_error_names_the_line(self) -> None:
        with pytest.raises(HwnasError, match=r"k\.cu does not compile for SM 86 .*k\.cu\(2\): error"):
            nvrtc.compile_cubin("\nnot_a_type f();", "k.cu", (8, 6))
        with pytest.raises(HwnasError, match="invalid value for --gpu-architecture"):
            nvrtc.compile_cubin("", "k.cu", (0, 1))

    def test_without_a_compiler_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nvrtc, "_packaged", list)
        monkeypatch.setattr(nvrtc.ctypes.util, "find_library", lambda name: None)
        monkeypatch.setattr(nvrtc, "_library", nvrtc._library.__wrapped__)
        with pytest.raises(MissingExtra, match=r"pip install 'hwnas\[cuda\]'"):
            nvrtc.version()


def test_each_file_opens_with_its_contract_and_every_function_is_listed() -> None:
    found = set()
    for path in sorted(kernels_dir().glob("*.cu")):
        text = path.read_text()
        functions = re.findall(r'extern "C" __global__ void (\w+)\(', text)
        assert functions
        head = text.split("\n\n")[0:3]
        assert text.startswith(f"// {', '.join(functions)}: ")
        assert any("Reference: " in part for part in head)
        assert any("Grid: " in part for part in head)
        found |= {(path.name, name) for name in functions}
    assert found == {(k.file, k.name) for k in KERNELS.values()}


def test_an_unknown_package_folder_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several NVRTC the newest is taken, and one that cannot be loaded is passed over."""
    broken = tmp_path / "libnvrtc.so.99"
    broken.write_text("no library")
    good = nvrtc._packaged()
    assert good
    monkeypatch.setattr(nvrtc, "_packaged", lambda: [*good, broken])
    monkeypatch.setattr(nvrtc, "_library", nvrtc._library.__wrapped__)
    assert nvrtc.version() >= (12, 0)
