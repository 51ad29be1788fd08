"""What the command line loads before it does anything: help comes without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "onnx", "scipy", "highspy", "matplotlib", "fvcore", "safetensors", "PIL")
HELP = """
import json, sys
try:
    from hwnas.__main__ import main
    sys.argv = ["hwnas", *{words!r}]
    main()
except SystemExit as ended:
    assert not ended.code, ended
print("\\n" + json.dumps(sorted(m for m in sys.modules if "." not in m)))
"""


def loaded(code: str, folder: Path) -> set[str]:
    """Return the packages that a program has loaded at its end."""
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return set(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--help"], ["ls", "--help"], ["search", "--help"], ["table", "diff", "--help"]])
def test_help_loads_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    packages = loaded(HELP.format(words=words), tmp_path)
    assert "tyro" in packages
    assert not packages & set(HEAVY)


def test_jobs_are_loaded_when_they_are_asked_for(tmp_path: Path) -> None:
    end = '\nimport json, sys; print(json.dumps(sorted(m for m in sys.modules if "." not in m)))'
    assert not loaded("import hwnas.jobs" + end, tmp_path) & {*HEAVY, "rich"}
    packages = loaded("from hwnas.jobs import search, SearchSettings; assert callable(search)" + end, tmp_path)
    assert "torch" in packages
    assert "rich" not in packages  # jobs show nothing


def test_every_name_of_the_jobs_is_there() -> None:
    from hwnas import jobs

    for name in jobs.__all__:
        assert getattr(jobs, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = jobs.nothing
