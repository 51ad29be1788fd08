"""Pictures of labels and predictions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas.data import ClassList
from hwnas.draw import colourise, panel, save_panel
from hwnas.errors import HwnasError

CLASSES = ClassList(("a", "b"), ((10, 20, 30), (200, 100, 50)))


def picture(value: int, height: int = 20, width: int = 40) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_colourise_gives_each_class_its_colour_and_void_black(dtype: type) -> None:
    out = colourise(np.array([[0, 1], [255, 0]], dtype), CLASSES)
    assert out.dtype == np.uint8
    assert out.tolist() == [[[10, 20, 30], [200, 100, 50]], [[0, 0, 0], [10, 20, 30]]]


@pytest.mark.parametrize("bad", [2, 254, 256, -1])
def test_colourise_refuses_labels_without_a_class(bad: int) -> None:
    with pytest.raises(HwnasError, match=rf"label {bad} is outside 0\.\.1"):
        colourise(np.array([[0, bad]]), CLASSES)


def test_panel_holds_every_picture_in_reading_order() -> None:
    rows = [[picture(10), picture(20), picture(30)], [picture(40), picture(50), picture(60)]]
    out = np.asarray(panel(rows, ["", "", ""]))
    places = [np.argwhere((out == v).all(-1)) for v in (10, 20, 30, 40, 50, 60)]
    assert all(len(p) == 20 * 40 for p in places)
    middles = [(round(p[:, 0].mean()), round(p[:, 1].mean())) for p in places]
    assert middles == sorted(middles)


def test_panel_draws_captions() -> None:
    with_caption, without = (np.asarray(panel([[picture(255)]], [c])) for c in ("image", ""))
    assert with_caption.shape == without.shape
    assert (with_caption[:18] < 128).any()
    assert not (without < 128).any()


def test_saved_panel_is_a_png_of_the_panel(tmp_path: Path) -> None:
    path = tmp_path / "made" / "panel.png"
    rows = [[picture(0), picture(128)]]
    save_panel(path, rows, ["one", "two"])
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert np.array_equal(np.asarray(saved), np.asarray(panel(rows, ["one", "two"])))
    assert [p.name for p in path.parent.iterdir()] == ["panel.png"]


def test_saved_panel_must_be_named_png(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match=r"expected a file name that ends in \.png, got .*x\.jpg"):
        save_panel(tmp_path / "x.jpg", [[picture(0)]], ["one"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected rows of 2 pictures, one a caption, got no rows"),
        ([[picture(0), picture(0)], [picture(0)]], "got 2, 1; give each one caption"),
        ([[picture(0), picture(0, height=21)]], r"of one size, got uint8 \(21, 40, 3\) beside \(20, 40, 3\)"),
        ([[picture(0), np.zeros((20, 40), np.uint8)]], r"use colourise\(\) for labels"),
        ([[np.zeros((20, 40, 3), np.float32)] * 2], "got float32"),
    ],
)
def test_panel_refuses_what_is_no_grid(rows: list[list[np.ndarray]], message: str) -> None:
    with pytest.raises(HwnasError, match=message):
        panel(rows, ["one", "two"])
