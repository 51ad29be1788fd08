"""Datasets, augmentation and batches."""

import hashlib
import itertools
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hwnas.data import (
    ClassList,
    FolderData,
    Sample,
    SegmentationData,
    Shapes,
    Synthetic,
    open_dataset,
    split_halves,
)
from hwnas.data.augment import BatchSource, batch_source, random_crop_flip
from hwnas.data.layouts.camvid import camvid as describe
from hwnas.errors import DataError
from hwnas.images import normalise
from hwnas.metrics import ConfusionMatrix

SIZE = (24, 32)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A folder in the layout of CamVid: four train samples, one val, one test; 24x32, as `SIZE`."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 4), ("val", 1), ("test", 1)):
        for part in ("images", "labels"):
            (tmp_path / split / part).mkdir(parents=True)
        names = [f"{split}_{i}" for i in range(n)]
        (tmp_path / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            grey = rng.integers(0, 256, (1, 1, 3), np.uint8)
            Image.fromarray(np.broadcast_to(grey, (*SIZE, 3)).copy()).save(tmp_path / split / f"images/{name}.jpg")
            label = rng.integers(0, 12, SIZE, np.uint8)
            Image.fromarray(label).save(tmp_path / split / f"labels/{name}.png")
    return tmp_path


# the split for the bilevel search


@settings(max_examples=200, deadline=None)
@given(n=st.integers(2, 500), seed=st.integers(0, 2**40))
def test_halves_are_disjoint_and_everything(n: int, seed: int) -> None:
    weights, alphas = split_halves(n, seed)
    assert not set(weights) & set(alphas)
    assert sorted(weights + alphas) == list(range(n))
    assert 0 <= len(alphas) - len(weights) <= 1
    assert split_halves(n, seed) == (weights, alphas)


def test_halves_depend_on_the_seed_and_are_no_prefix() -> None:
    assert split_halves(100, 0) != split_halves(100, 1)
    assert split_halves(100, 0)[0] != list(range(50))


def test_batches_of_the_two_halves_never_share_a_sample() -> None:
    data = Synthetic("train", SIZE, length=21)
    weights, alphas = split_halves(len(data), 3)
    sources = [BatchSource(data, half, 4, SIZE, seed=9) for half in (weights, alphas)]
    seen = [set(itertools.chain.from_iterable(s.chosen(step) for step in range(12))) for s in sources]
    assert seen == [set(weights), set(alphas)]


@pytest.mark.parametrize("n", [0, 1])
def test_halves_of_too_little_are_refused(n: int) -> None:
    with pytest.raises(DataError, match=f"at least 2 training samples to split in halves, got {n}"):
        split_halves(n, 0)


# opening


def test_open_by_name_and_by_folder(camvid: Path) -> None:
    opened: list[SegmentationData] = [open_dataset("synthetic", "val", SIZE), open_dataset(str(camvid), "val", SIZE)]
    assert [type(d) for d in opened] == [Synthetic, FolderData]
    for data in opened:
        image, label, _ = data[0]
        assert image.shape == (*SIZE, 3)
        assert label.shape == SIZE
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) <= {*range(len(data.classes)), 255}


def test_open_passes_seed_and_length(camvid: Path) -> None:
    assert len(open_dataset("synthetic", "train", SIZE, length=7)) == 7
    one, other = (open_dataset("synthetic", "train", SIZE, seed=s)[0].image for s in (0, 1))
    assert not np.array_equal(one, other)
    assert len(open_dataset(str(camvid), "train", SIZE, length=3)) == 3


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("sythetic", "train", r"unknown dataset 'sythetic'; did you mean 'synthetic'\?.*SPLIT\.txt, SPLIT/images"),
        ("/nowhere/camvid", "val", r"unknown dataset '/nowhere/camvid'.*it is no folder either: expected one of"),
        (__file__, "train", "it is a file either"),
        ("synthetic", "training", "unknown split 'training'; use one of train, val, test"),
    ],
)
def test_open_refuses(name: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(name, split, SIZE)


@pytest.mark.parametrize("size", [(0, 32), (15, 32), (24, -1), (10_000, 10_000)])
def test_open_refuses_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=rf"size \(height, width\).*got {size[0]}x{size[1]}"):
        open_dataset("synthetic", "train", size)


@pytest.mark.parametrize(("seed", "length", "message"), [(-1, None, "seed of 0 or more, got -1"), (0, 0, "got 0")])
def test_synthetic_refuses(seed: int, length: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Synthetic("train", SIZE, seed=seed, length=length)


def test_class_list_needs_one_colour_a_class() -> None:
    with pytest.raises(DataError, match="got 2 names and 1 colours"):
        ClassList(("a", "b"), ((0, 0, 0),))


# folders laid out like CamVid


def of_camvid(folder: Path, split: str, size: tuple[int, int], **options: int) -> FolderData:
    return FolderData(folder, describe(folder), split, size, **options)


def test_camvid_maps_void_and_keeps_classes(camvid: Path) -> None:
    data = of_camvid(camvid, "train", SIZE)
    assert [data[i].name for i in range(len(data))] == [f"train_{i}" for i in range(4)]
    with Image.open(camvid / "train/labels/train_1.png") as f:
        raw = np.asarray(f)
    assert (raw == 11).any()
    assert np.array_equal(data[1].label, np.where(raw == 11, 255, raw))


def test_camvid_resizes_labels_without_mixing_them(camvid: Path) -> None:
    label = np.zeros(SIZE, np.uint8)
    label[:, 16:] = 10
    Image.fromarray(label).save(camvid / "val/labels/val_0.png")
    sample = of_camvid(camvid, "val", (13, 64))[0]
    assert sample.image.shape == (13, 64, 3)
    assert sample.label.shape == (13, 64)
    assert (sample.label[:, :32] == 0).all()
    assert (sample.label[:, 32:] == 10).all()


def test_camvid_reads_grey_images_as_rgb(camvid: Path) -> None:
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(camvid / "val/images/val_0.jpg")
    image = of_camvid(camvid, "val", SIZE)[0].image
    assert image.shape == (*SIZE, 3)
    assert np.abs(image.astype(int) - 77).max() <= 2


def test_samples_are_decoded_once_and_read_only(camvid: Path) -> None:
    data = of_camvid(camvid, "train", SIZE)
    first = data[2]
    assert data[2] is first
    assert data[-2] is first
    with pytest.raises(ValueError, match="read-only"):
        first.image[0] = 0


def test_cache_is_bounded_in_bytes(camvid: Path) -> None:
    cost = 24 * 32 * 4
    data = of_camvid(camvid, "train", SIZE, cache_bytes=2 * cost)
    first = [data[i] for i in range(4)]
    assert [data[i] is first[i] for i in range(4)] == [True, True, False, False]
    assert np.array_equal(data[3].image, first[3].image)
    assert data._cache.held_bytes == 2 * cost


def test_index_out_of_range_ends_iteration(camvid: Path) -> None:
    data = of_camvid(camvid, "val", SIZE)
    assert [name for _, _, name in data] == ["val_0"]  # type: ignore[attr-defined]  # __getitem__ iterates at run time
    with pytest.raises(IndexError, match="index 1 is out of range for 1 samples"):
        data[1]


def _remove(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).unlink()


def _write(path: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove("train.txt"), r"cannot read the list .*train\.txt: No such file.*one sample name a line"),
        (_write("train.txt", b"\n  \n"), r"train\.txt is empty; write one sample name"),
        (_write("train.txt", b"\xff\xfe"), r"train\.txt: not UTF-8 text"),
        (_write("train.txt", b"../val/images/val_0\n"), r"lists '\.\./val/images/val_0', which may leave the folder"),
        (_write("train.txt", b"/etc/passwd\n"), "lists '/etc/passwd', which may leave"),
        (_write("train.txt", b"a\\..\\b\n"), "which may leave the folder"),
        (_write("train.txt", b"a\x00b\n"), "which may leave the folder"),
        (_write("train.txt", b"train_0\ntrain_1\ntrain_0\n"), "lists 'train_0' twice"),
        (_write("train.txt", b"n" * 5000), r"\.jpg is missing \(and 1 more\)"),
        (_remove("train/images/train_3.jpg"), r"images/train_3\.jpg is missing; restore it or take its name out of"),
        (_remove("train/labels/train_0.png"), r"labels/train_0\.png is missing"),
    ],
)
def test_camvid_is_checked_at_opening(camvid: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(camvid)
    with pytest.raises(DataError, match=message):
        of_camvid(camvid, "train", SIZE)


@pytest.mark.parametrize("length", [0, 5])
def test_camvid_length_must_be_in_the_list(camvid: Path, length: int) -> None:
    with pytest.raises(DataError, match=rf"train\.txt lists 4 samples, got length {length}"):
        of_camvid(camvid, "train", SIZE, length=length)


@pytest.mark.parametrize("file", ["images/val_0.jpg", "labels/val_0.png"])
@pytest.mark.parametrize("keep", [0, 1, 10, 40, 0.5, 0.8])
def test_truncated_files_are_named(camvid: Path, file: str, keep: float) -> None:
    path = camvid / "val" / file
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    data = of_camvid(camvid, "val", SIZE)
    with pytest.raises(DataError, match=rf"cannot decode .*{re.escape(file)} \(.*\); replace the file"):
        data[0]


@pytest.mark.parametrize("file", ["images/val_0.jpg", "labels/val_0.png"])
def test_damaged_files_raise_nothing_but_data_errors(camvid: Path, file: str) -> None:
    path = camvid / "val" / file
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        spoilt = np.frombuffer(content, np.uint8).copy()
        spoilt[rng.integers(0, len(spoilt), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(spoilt.tobytes())
        try:
            sample = of_camvid(camvid, "val", SIZE)[0]
        except DataError:
            refused += 1
        else:
            assert sample.image.shape == (*SIZE, 3)
    assert refused > 10


def test_a_file_that_is_no_image_is_named(camvid: Path) -> None:
    (camvid / "val/images/val_0.jpg").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"cannot decode .*val_0\.jpg"):
        of_camvid(camvid, "val", SIZE)[0]


@pytest.mark.parametrize("value", [12, 254, 255])
def test_labels_outside_the_classes_are_named(camvid: Path, value: int) -> None:
    label = np.zeros(SIZE, np.uint8)
    label[3, 4] = value
    Image.fromarray(label).save(camvid / "val/labels/val_0.png")
    with pytest.raises(DataError, match=rf"labels/val_0\.png holds label {value}, expected 0\.\.10 .* or 11 for void"):
        of_camvid(camvid, "val", SIZE)[0]


def test_label_must_match_its_image(camvid: Path) -> None:
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(camvid / "val/labels/val_0.png")
    with pytest.raises(DataError, match=r"val_0\.png is 24x30 \(height x width\) but its image is 24x32"):
        of_camvid(camvid, "val", SIZE)[0]


def test_colours_outside_the_classes_are_named(camvid: Path) -> None:
    Image.fromarray(np.full((*SIZE, 3), 7, np.uint8)).save(camvid / "val/labels/val_0.png")
    with pytest.raises(DataError, match=r"val_0\.png holds colour \(7, 7, 7\), expected one of 33 colours"):
        of_camvid(camvid, "val", SIZE)[0]


@pytest.mark.parametrize("side", [7_000, 10_000, 60_000])
def test_huge_images_are_refused_by_their_header(camvid: Path, side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    (camvid / "val/images/val_0.jpg").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"val_0\.jpg has more than 40 megapixels; scale it down"):
        of_camvid(camvid, "val", SIZE)[0]


# synthetic scenes


def digest(sample: Sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.label.tobytes()).hexdigest()


def test_a_scene_is_the_same_in_another_process() -> None:
    code = """
import hashlib
from hwnas.data import Synthetic
s = Synthetic("val", (60, 80), seed=5)[17]
print(hashlib.sha256(s.image.tobytes() + s.label.tobytes()).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    data = Synthetic("val", (60, 80), seed=5)
    assert [data[i].name for i in (3, 16)] == ["val-00003", "val-00016"]  # what was drawn before does not matter
    assert digest(data[17]) == other


def test_scenes_differ_by_index_split_and_seed() -> None:
    seen = [
        digest(Synthetic(split, SIZE, seed=seed)[i])
        for split in ("train", "val", "test")
        for seed in range(2)
        for i in range(5)
    ]
    assert len(set(seen)) == len(seen)


def test_default_lengths() -> None:
    assert [len(Synthetic(s, SIZE)) for s in ("train", "val", "test")] == [400, 100, 100]


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (97, 131), (31, 400), (400, 31), (1024, 2048)])
def test_scenes_of_any_size(size: tuple[int, int]) -> None:
    image, label, _ = Synthetic("train", size)[0]
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert image.std() > 10
    assert len(np.unique(label)) >= 4


def test_every_class_occurs_in_its_share() -> None:
    data = Synthetic("train", (96, 128))
    labels = np.stack([data[i].label for i in range(50)])
    shares = np.array([(labels == c).mean() for c in range(len(data.classes))])
    assert shares.min() >= 0.003, dict(zip(data.classes.names, shares, strict=True))
    assert shares.max() < 0.5
    assert 0.001 < (labels == 255).mean() < 0.1


def test_masks_lie_exactly_on_what_is_seen() -> None:
    """Colour steps are larger across the borders of masks than within them, and a shift by 2 pixels spoils that."""
    data = Synthetic("train", (96, 128))
    at_border, shifted = [], []
    for i in range(20):
        image, label, _ = data[i]
        step = np.abs(np.diff(image.astype(int), axis=1)).sum(-1)
        border = np.diff(label.astype(int), axis=1) != 0
        at_border.append(step[border].mean() / step[~border].mean())
        moved = np.roll(border, 2, axis=1)
        shifted.append(step[moved].mean() / step[~moved].mean())
    assert np.mean(at_border) > 1.5 * np.mean(shifted)


def score_histogram(key: Callable[[np.ndarray], np.ndarray], n_keys: int) -> float:
    """mIoU on val of the likeliest class of each key, counted on train."""
    train, val = Synthetic("train", (64, 96)), Synthetic("val", (64, 96))
    counts = np.zeros(n_keys * 11, np.int64)
    for i in range(120):
        image, label, _ = train[i]
        known = label != 255
        counts += np.bincount(key(image)[known] * 11 + label[known], minlength=len(counts))
    likeliest = counts.reshape(n_keys, 11).argmax(1)
    matrix = ConfusionMatrix(11)
    for i in range(40):
        matrix.update(likeliest[key(val[i].image)], val[i].label)
    return matrix.miou()


def test_colour_alone_does_not_solve_it_and_context_helps() -> None:
    def colour(image: np.ndarray) -> np.ndarray:
        out: np.ndarray = (image.astype(np.int64) >> 5) @ np.array([64, 8, 1])
        return out

    def colour_and_place(image: np.ndarray) -> np.ndarray:
        h, w = image.shape[:2]
        out: np.ndarray = colour(image) * 128 + np.arange(h)[:, None] * 16 // h * 8 + np.arange(w) * 8 // w
        return out

    alone, placed = score_histogram(colour, 512), score_histogram(colour_and_place, 512 * 128)
    assert alone < 0.45
    assert placed > alone + 0.05


# augmentation


def coded(label: np.ndarray) -> np.ndarray:
    """An image that shows its label: grey of 20 times the class."""
    return np.repeat((label * 20)[..., None], 3, axis=2).astype(np.uint8)


def quilt() -> np.ndarray:
    return np.kron(np.random.default_rng(2).integers(0, 11, (6, 8)), np.ones((10, 10), np.int64)).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 150), width=st.integers(1, 150))
def test_image_and_label_move_together(seed: int, height: int, width: int) -> None:
    label = quilt()
    rng = np.random.default_rng(seed)
    image, out = random_crop_flip(coded(label), label, (height, width), rng, fill=(255, 0, 255), jitter=0.0)
    assert image.shape == (height, width, 3)
    assert out.shape == (height, width)
    assert image.dtype == out.dtype == np.uint8
    assert ((image == (255, 0, 255)).all(-1) == (out == 255)).all()
    # away from the edges of patches nothing is interpolated
    same = np.ones(out.shape, bool)
    for shift in itertools.product(range(-2, 3), repeat=2):
        same &= np.roll(out, shift, (0, 1)) == out
    same[:2] = same[-2:] = False
    same[:, :2] = same[:, -2:] = False
    assert np.array_equal(image[same & (out != 255)][:, 0], 20 * out[same & (out != 255)])


def test_crop_without_scaling_is_a_part_of_the_image_or_its_mirror() -> None:
    label = quilt()
    image = coded(label) + np.arange(80, dtype=np.uint8)[None, :, None] // 8
    kinds = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        out, out_label = random_crop_flip(image, label, (30, 50), rng, scale_range=(1.0, 1.0), jitter=0.0)
        places = itertools.product(range(31), range(31), (1, -1))
        found = [(y, x, m) for y, x, m in places if np.array_equal(image[y : y + 30, x : x + 50][:, ::m], out)]
        assert found
        y, x, mirror = found[0]
        assert np.array_equal(label[y : y + 30, x : x + 50][:, ::mirror], out_label)
        kinds.add((mirror, y > 15, x > 15))
    assert len(kinds) == 8  # mirrored or not, in every quarter


def test_scales_cover_their_range() -> None:
    label = np.zeros((40, 40), np.uint8)
    sides = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        _, out = random_crop_flip(coded(label), label, (80, 80), rng, scale_range=(0.5, 2.0))
        sides.append(int((out == 0).any(1).sum()))
    assert 20 <= min(sides) <= 23
    assert 72 <= max(sides) <= 80
    assert 0.3 < np.mean(np.array(sides) < 40) < 0.7  # log-uniform: as often smaller as larger


def test_jitter_is_mild_and_leaves_labels() -> None:
    label = quilt()
    grey = np.full((60, 80, 3), 120, np.uint8)
    means = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        out, _ = random_crop_flip(grey, label, (60, 80), rng, scale_range=(1.0, 1.0), jitter=0.2)
        means.append(out.mean())
    assert np.std(means) > 5
    assert min(means) >= 0.79 * 120
    assert max(means) <= 1.21 * 120


@pytest.mark.parametrize(
    ("shape", "scale_range", "jitter"),
    [
        ((60, 81), (0.5, 2.0), 0.2),
        ((60, 80), (0.0, 2.0), 0.2),
        ((60, 80), (2.0, 1.0), 0.2),
        ((60, 80), (1.0, 1.0), 1.0),
    ],
)
def test_augmentation_refuses(shape: tuple[int, int], scale_range: tuple[float, float], jitter: float) -> None:
    label = quilt()
    with pytest.raises(DataError, match="expected image and label of one size, 0 < low <= high scale"):
        random_crop_flip(
            np.zeros((*shape, 3), np.uint8), label, SIZE, np.random.default_rng(0), scale_range, jitter=jitter
        )


def test_normalise() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    out = normalise(image, mean, std)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out, ((image / 255 - mean) / std).transpose(2, 0, 1), atol=1e-5)


# batches


@pytest.fixture(scope="module")
def scenes() -> Synthetic:
    return Synthetic("train", SIZE, length=10)


def test_batch_is_a_pure_function_of_seed_and_step(scenes: Synthetic) -> None:
    one, resumed = (BatchSource(scenes, range(10), 3, (16, 20), seed=4) for _ in range(2))
    straight = [one(step) for step in range(6)]
    for step in (5, 3, 4):  # another process starts in the middle
        images, labels = resumed(step)
        assert np.array_equal(images, straight[step][0])
        assert np.array_equal(labels, straight[step][1])
    assert images.shape == (3, 3, 16, 20)
    assert images.dtype == np.float32
    assert labels.shape == (3, 16, 20)
    assert labels.dtype == np.int64
    other = BatchSource(scenes, range(10), 3, (16, 20), seed=5)
    assert not np.array_equal(other(0)[0], straight[0][0])


@pytest.mark.parametrize("augment", [True, False])
def test_parts_of_a_batch_are_its_samples(scenes: Synthetic, augment: bool) -> None:
    """Whoever has a part of it draws what the samples before would have drawn."""
    for data, size in ((scenes, (48, 64)), (Shapes("train", (16, 16), length=9), (16, 16))):
        source = batch_source(data, range(5), 6, size, seed=3, augment=augment)
        for whole, parts in zip(source(2), zip(*(source.part(2, k, 3) for k in range(3)), strict=True), strict=True):
            assert all(len(p) == 2 for p in parts)
            assert np.array_equal(np.concatenate(parts), whole)


def test_same_samples_are_augmented_anew(scenes: Synthetic) -> None:
    source = BatchSource(scenes, [3], 1, SIZE, seed=0)
    assert not np.array_equal(source(0)[0], source(1)[0])


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 10), batch=st.integers(1, 25), seed=st.integers(0, 99))
def test_every_epoch_visits_every_index_once(n: int, batch: int, seed: int) -> None:
    data = Synthetic("train", SIZE, length=10)
    source = BatchSource(data, range(n), batch, SIZE, seed)
    stream = list(itertools.chain.from_iterable(source.chosen(step) for step in range(3 * n)))
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_have_orders_of_their_own(scenes: Synthetic) -> None:
    source = BatchSource(scenes, range(10), 5, SIZE, seed=0)
    assert len({tuple(source.order(epoch)) for epoch in range(5)}) == 5


def test_without_augmentation_batches_are_the_samples(scenes: Synthetic) -> None:
    source = BatchSource(scenes, [7, 2], 2, SIZE, seed=0, augment=False)
    images, labels = source(0)
    for k, index in enumerate(source.chosen(0)):
        assert np.array_equal(images[k], normalise(scenes[index].image, scenes.mean, scenes.std))
        assert np.array_equal(labels[k], scenes[index].label)


def test_without_augmentation_samples_are_resized(scenes: Synthetic) -> None:
    images, labels = BatchSource(scenes, [0], 1, (48, 64), seed=0, augment=False)(0)
    assert images.shape == (1, 3, 48, 64)
    assert np.array_equal(labels[0, ::2, ::2], scenes[0].label)


def test_padding_is_zero_after_normalisation(scenes: Synthetic) -> None:
    images, labels = BatchSource(scenes, range(10), 4, (100, 120), seed=0)(0)
    outside = labels == 255
    assert outside.mean() > 0.3
    corners = images[:, :, 0, 0][outside[:, 0, 0]]
    assert len(corners)
    assert np.abs(corners).max() < 0.02


@pytest.mark.parametrize(
    ("indices", "batch", "seed", "message"),
    [
        ([], 2, 0, "expected distinct indices in 0..9 of synthetic/train, got 0"),
        ([0, 10], 2, 0, "got 2 from 0 to 10"),
        ([-1, 3], 2, 0, "got 2 from -1 to 3"),
        ([1, 1], 2, 0, "expected distinct indices"),
        ([1], 0, 0, "expected a batch of at least 1, got 0"),
        ([1], 1, -3, "seed of 0 or more, got -3"),
    ],
)
def test_batch_source_refuses(scenes: Synthetic, indices: list[int], batch: int, seed: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        BatchSource(scenes, indices, batch, SIZE, seed)
