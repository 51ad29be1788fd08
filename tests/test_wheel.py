"""What a deployment box gets: the wheel, numpy, and nothing else."""

from __future__ import annotations

import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from hwnas import __version__, resources
from hwnas.errors import HwnasError
from hwnas.resources import kernels_dir, profiles_dir
from tests.conftest import ROOT, run


def shipped(folder: str, *patterns: str) -> set[str]:
    paths = {p for pattern in patterns for p in (ROOT / folder).rglob(pattern) if "__pycache__" not in p.parts}
    return {str(p.relative_to(ROOT)) for p in paths if p.is_file()}


def test_the_wheel_holds_the_package_the_tables_and_the_kernels(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    code = shipped("hwnas", "*")
    kernels = shipped("kernels", "*.cu", "*.cuh", "*.cpp", "*.md")
    shared = {f"hwnas/_share/{n}" for n in shipped("profiles", "*.json", "*.md") | kernels}
    assert names == code | shared
    assert {"hwnas/_share/profiles/README.md", "hwnas/_share/kernels/README.md"} <= names
    assert {"kernels/common.cuh", "kernels/preprocess.cu", "kernels/cpu/supernet.cpp"} <= kernels


def test_the_base_install_asks_for_numpy_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        (metadata,) = (n for n in z.namelist() if n.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(z.read(metadata).decode())
    required = headers.get_all("Requires-Dist") or []
    assert [r.partition(">")[0] for r in required if "extra ==" not in r] == ["numpy"]
    assert headers["Requires-Python"] == ">=3.10"
    assert headers["Version"] == __version__


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxruntime", "scipy", "highspy", "tyro", "rich", "PIL"])
def test_the_bare_environment_lacks(package: str, bare_venv: Path, tmp_path: Path) -> None:
    find = f"import importlib.util; print(importlib.util.find_spec({package!r}))"
    assert run(bare_venv, "-c", find, cwd=tmp_path).strip() == "None"


def test_the_installed_package_finds_its_files(bare_venv: Path, tmp_path: Path) -> None:
    code = (
        "import sys, hwnas, hwnas.runtime\n"
        "from hwnas.resources import kernels_dir, profiles_dir\n"
        "for folder in (kernels_dir(), profiles_dir()):\n"
        "    assert folder.is_relative_to(sys.prefix), folder\n"
        "    print((folder / 'README.md').is_file())\n"
    )
    assert run(bare_venv, "-c", code, cwd=tmp_path).split() == ["True", "True"]


def test_the_runtime_starts_with_numpy_alone(bare_venv: Path, tmp_path: Path) -> None:
    assert "measure" in run(bare_venv, "-m", "hwnas.runtime", "--help", cwd=tmp_path)


def test_a_checkout_finds_its_files() -> None:
    assert (profiles_dir(), kernels_dir()) == (ROOT / "profiles", ROOT / "kernels")


def test_a_broken_installation_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels").mkdir()  # somebody else's: no setup.py of ours is beside it
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "hwnas" / "resources.py"))
    with pytest.raises(HwnasError, match=r"expected the folder kernels/ .*_share/kernels.*; reinstall hwnas"):
        kernels_dir()
