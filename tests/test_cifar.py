"""Classification: CIFAR-10's files, drawn shapes, augmentation, and the whole job from a budget to a proven file."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hwnas import recipes
from hwnas.data import CLASSIFICATION, SEGMENTATION, Cifar10, Shapes, Synthetic, open_dataset, task_of
from hwnas.data.augment import PAD, batch_source, cut_out, pad_crop_flip
from hwnas.errors import DataError
from hwnas.export import export
from hwnas.images import normalise
from hwnas.learn.evaluation import evaluate
from hwnas.learn.training import TrainConfig, Training
from hwnas.runtime.deploy.bundle import Bundle, open_application
from hwnas.spaces import Scale, darts_space, sample, trace_space
from tests.verbs import camvid_folder, done, edit, hwnas

SIZE = (32, 32)
NAMES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
IMAGES = 20  # in each file
RECIPE = "darts-cifar10-tiny"
SPACE = darts_space(Scale(4, 3, SIZE), 10, "cifar", "classification", nodes=2)
ARCH = sample(SPACE, np.random.default_rng(0))
pytestmark = pytest.mark.usefixtures("one_thread")


def python_2_pickle(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """Return a batch as Python 2 and its numpy wrote the public files: protocol 2, text and pixels as byte strings."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)  # BININT

    raw = images.tobytes()
    array = b"".join(
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR(K\x01(",
            *(number(n) for n in images.shape),
            b"tcnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff",
            b"J\xff\xff\xff\xffK\x00tbI00\nT" + struct.pack("<i", len(raw)) + raw + b"tb",
        )
    )
    fields = (
        text(b"batch_label") + text(b"training batch 1 of 5"),
        text(b"labels") + b"](" + b"".join(b"K" + bytes([v]) for v in labels) + b"e",
        text(b"data") + array,
        text(b"filenames") + b"](" + text(b"a.png") * len(labels) + b"e",
    )
    return b"\x80\x02}(" + b"".join(fields) + b"u."


def contents() -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    rng = np.random.default_rng(0)
    return {
        n: (rng.integers(0, 256, (IMAGES, 3072)).astype(np.uint8), rng.integers(0, 10, IMAGES).tolist()) for n in NAMES
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`cifar-10-batches-py` with 20 images in each file instead of 10,000."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, (images, labels) in contents().items():
        (folder / name).write_bytes(python_2_pickle(images, labels))
    return folder


def archive_of(folder: Path) -> Path:
    path = folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


class TestReading:
    def test_the_splits_are_the_files_with_a_tenth_of_train_held_out(self, folder: Path) -> None:
        made = contents()
        images, labels = (np.concatenate([made[n][i] for n in NAMES[:5]]) for i in (0, 1))
        data = {split: open_dataset(str(folder), split, SIZE) for split in ("train", "val", "test")}
        assert [len(d) for d in data.values()] == [90, 10, IMAGES]
        wanted = {"train": (images[:90], labels[:90]), "val": (images[90:], labels[90:]), "test": made["test_batch"]}
        for split, (pixels, classes) in wanted.items():
            for i in range(len(data[split])):
                image, label, _ = data[split][i]
                assert (image.shape, image.dtype, label.shape, label.dtype) == ((32, 32, 3), np.uint8, (), np.uint8)
                # A row is the red plane, then green, then blue, each by rows.
                assert image[5, 7, 2] == pixels[i][2 * 1024 + 5 * 32 + 7]
                np.testing.assert_array_equal(np.moveaxis(image, 2, 0).reshape(-1), pixels[i])
                assert label == classes[i]
                assert not image.flags.writeable
                assert not label.flags.writeable
        assert data["train"].classes.names[3] == "cat"
        assert task_of(data["train"]) is CLASSIFICATION

    def test_the_archive_and_the_folder_above_are_the_same(self, folder: Path) -> None:
        want = Cifar10(folder, "test", SIZE)
        for path in (folder.parent, archive_of(folder)):
            got = open_dataset(str(path), "test", SIZE)
            assert [got[i].label for i in range(IMAGES)] == [want[i].label for i in range(IMAGES)]
            np.testing.assert_array_equal(got[3].image, want[3].image)
            assert got.name == want.name

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_files_written_anew_by_python_3_are_read(self, folder: Path, protocol: int) -> None:
        images, labels = contents()["test_batch"]
        for batch in ({b"data": images, b"labels": labels}, {"data": np.asfortranarray(images), "labels": labels}):
            (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol))
            data = Cifar10(folder, "test", SIZE)
            np.testing.assert_array_equal(data[4].image.transpose(2, 0, 1).reshape(-1), images[4])

    def test_another_size_and_length(self, folder: Path) -> None:
        data = open_dataset(str(folder), "train", (24, 40), length=7)
        assert (len(data), data[0].image.shape) == (7, (24, 40, 3))
        for length in (0, 91):
            with pytest.raises(DataError, match=f"90 images for train, got length {length}"):
                open_dataset(str(folder), "train", SIZE, length=length)
        with pytest.raises(IndexError):
            data[7]

    def test_a_missing_file_is_named(self, folder: Path) -> None:
        (folder / "data_batch_4").unlink()
        with pytest.raises(DataError, match=r"cannot read .*data_batch_4 of CIFAR-10: No such file.*unpack"):
            Cifar10(folder, "val", SIZE)
        assert len(Cifar10(folder, "test", SIZE)) == IMAGES
        with pytest.raises(DataError, match=r"tar\.gz has no data_batch_4"):
            Cifar10(archive_of(folder), "train", SIZE)

    def test_what_is_no_batch_is_refused(self, folder: Path) -> None:
        images, labels = contents()["test_batch"]
        for batch, why in (
            ({"data": images, "fine_labels": labels}, "it has data, fine_labels, not data and labels"),
            ([1, 2], "it has list"),
            ({"data": images[:, :-1].copy(), "labels": labels}, r"its images are \(20, 3071\), not \(n, 3072\)"),
            ({"data": images.astype(np.int64), "labels": labels}, "an array of 'i8', expected bytes"),
            ({"data": [1], "labels": labels}, "its images are None"),
            ({"data": images, "labels": labels[:-1]}, "not one label from 0 to 9 for each of its 20 images"),
            ({"data": images, "labels": [10, *labels[1:]]}, "not one label from 0 to 9"),
            ({"data": images, "labels": [True, *labels[1:]]}, "not one label from 0 to 9"),
        ):
            (folder / "test_batch").write_bytes(pickle.dumps(batch, 2))
            with pytest.raises(DataError, match=f"test_batch is no batch of CIFAR-10, or damaged: .*{why}") as refused:
                Cifar10(folder, "test", SIZE)
            assert "\n" not in str(refused.value)

    def test_a_pickle_that_would_run_something_does_not(self, folder: Path, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "touched",))

        for evil in (Evil(), np.dtype("O"), np.array([1.0]), itertools.count(), complex(1, 2)):
            (folder / "test_batch").write_bytes(pickle.dumps({"data": evil, "labels": []}, 2))
            with pytest.raises(DataError, match="test_batch is no batch"):
                Cifar10(folder, "test", SIZE)
        assert not (tmp_path / "touched").exists()

    def test_damage_is_an_error_or_changes_values_only(self, folder: Path) -> None:
        path, rng = folder / "test_batch", np.random.default_rng(0)
        content = path.read_bytes()
        heads = len(content) - IMAGES * 3072  # most bytes are pixels, where damage cannot show
        cuts = [content[:n] for n in (*range(0, 300, 7), len(content) - 1)]
        flips = []
        for n in rng.integers(0, heads // 2, 300).tolist():
            at = n if rng.random() < 0.5 else len(content) - 1 - n
            flips.append(content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :])
        refused = 0
        for damaged in (*cuts, *flips):
            path.write_bytes(damaged)
            try:
                data = Cifar10(folder, "test", SIZE)
            except DataError:
                refused += 1
            else:
                assert damaged in flips
                assert all(0 <= int(data[i].label) < 10 for i in range(len(data)))
        assert refused > len(cuts) + 100

    def test_a_damaged_archive_is_refused(self, folder: Path) -> None:
        path = archive_of(folder)
        content = path.read_bytes()
        for damaged in (b"", b"no archive", content[:200], content[: len(content) // 2], content[:-4]):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"cannot read the archive .*download it again"):
                Cifar10(path, "train", SIZE)

    def test_archives_cannot_lead_out_or_fill_the_memory(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hwnas.data.layouts.cifar10.MOST_BYTES", 10_000)
        for path in (folder, archive_of(folder)):
            with pytest.raises(DataError, match="it has more than 0 MiB"):
                Cifar10(path, "test", SIZE)
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, str(folder / "test_batch")
        path = folder.parent / "link.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(link, io.BytesIO())
        with pytest.raises(DataError, match="has no test_batch"):
            Cifar10(path, "test", SIZE)


class TestShapes:
    def test_a_picture_is_a_function_of_seed_split_index_and_size(self) -> None:
        data = [open_dataset("synthetic-shapes", "train", SIZE, seed=s, length=30) for s in (0, 0, 1)]
        others = [Shapes("val", SIZE, length=30), Shapes("train", (32, 40), length=30)]
        for i in (29, 0, 13):
            np.testing.assert_array_equal(data[0][i].image, data[1][i].image)
            assert data[0][i].label == i % 10
            for other in (data[2], *others):
                assert not np.array_equal(data[0][i].image, other[i].image)
        assert task_of(data[0]) is CLASSIFICATION
        assert task_of(Synthetic("train", SIZE)) is SEGMENTATION

    def test_colours_tell_nothing_and_outlines_all(self) -> None:
        """The mean colour classifies no better than chance."""
        train, test = (Shapes(split, SIZE, length=600) for split in ("train", "test"))
        features = [np.array([d[i].image.mean((0, 1)) for i in range(600)]) for d in (train, test)]
        nearest = ((features[1][:, None] - features[0][None]) ** 2).sum(2).argmin(1)
        assert np.mean(nearest % 10 == np.arange(600) % 10) < 0.2

    @pytest.mark.parametrize(("size", "seed", "length"), [((15, 32), 0, 5), (SIZE, -1, 5), (SIZE, 0, 0)])
    def test_refuses(self, size: tuple[int, int], seed: int, length: int) -> None:
        with pytest.raises(DataError):
            Shapes("train", size, seed, length)


class TestAugmentation:
    def test_crop_and_mirror_are_those_of_a_plain_reference(self) -> None:
        image = np.random.default_rng(1).integers(1, 256, (9, 12, 3)).astype(np.uint8)
        seen = set()
        for seed in range(400):
            rng = np.random.default_rng(seed)
            top, left, mirror = rng.integers(2 * PAD + 1), rng.integers(2 * PAD + 1), rng.random() < 0.5
            want = np.zeros_like(image)
            for y, x in np.ndindex(9, 12):
                row, column = y + top - PAD, x + left - PAD
                if 0 <= row < 9 and 0 <= column < 12:
                    want[y, 11 - x if mirror else x] = image[row, column]
            np.testing.assert_array_equal(pad_crop_flip(image, (9, 12), np.random.default_rng(seed)), want)
            seen.add((int(top), int(left), bool(mirror)))
        assert {t for t, _, _ in seen} == {x for _, x, _ in seen} == set(range(2 * PAD + 1))
        assert {m for _, _, m in seen} == {True, False}

    def test_a_crop_larger_than_the_padded_image_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"crops of at most 40x40 .* got 41x32"):
            pad_crop_flip(np.zeros((32, 32, 3), np.uint8), (41, 32), np.random.default_rng(0))

    @pytest.mark.parametrize("side", [1, 5, 16, 100])
    def test_cutout_is_a_square_about_any_pixel(self, side: int) -> None:
        planes = np.random.default_rng(0).uniform(1, 2, (3, 20, 30)).astype(np.float32)
        before, areas, centres = planes.copy(), [], set()
        for seed in range(300):
            rng = np.random.default_rng(seed)
            y, x = int(rng.integers(20)), int(rng.integers(30))
            rows, columns = np.arange(20) - (y - side // 2), np.arange(30) - (x - side // 2)
            inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))
            got = cut_out(planes, side, np.random.default_rng(seed))
            np.testing.assert_array_equal(got, np.where(inside, 0, planes))
            areas.append((got[0] == 0).sum())
            centres.add((y, x))
        np.testing.assert_array_equal(planes, before)  # it is read by others too
        assert max(areas) == min(side, 20) * min(side, 30)
        assert len(centres) > 200
        with pytest.raises(DataError, match="cutout of 0 pixels or more, got -1"):
            cut_out(planes, -1, np.random.default_rng(0))

    def test_batches_are_functions_of_seed_and_step(self) -> None:
        data = Shapes("train", SIZE, length=50)
        make = lambda seed: batch_source(data, range(50), 8, SIZE, seed, cutout=16)  # noqa: E731
        one, same, other = make(1), make(1), make(2)
        for step in (7, 0, 3):
            images, labels = one(step)
            assert (images.shape, images.dtype) == ((8, 3, 32, 32), np.float32)
            assert (labels.shape, labels.dtype) == ((8,), np.int64)
            for a, b in zip((images, labels), same(step), strict=True):
                np.testing.assert_array_equal(a, b)
            assert not np.array_equal(images, other(step)[0])
            assert labels.tolist() == [data[i].label for i in one.chosen(step)]
            assert ((images == 0).all(1).sum((1, 2)) >= 64).all()  # a corner's share of a cutout of 16
        assert sorted(itertools.chain(*(one.chosen(s) for s in range(25)))) == sorted(4 * list(range(50)))

    def test_without_augmentation_samples_are_only_normalised(self) -> None:
        data = Shapes("train", (40, 32), length=6)
        images, _ = batch_source(data, range(6), 6, (40, 32), 0, augment=False, cutout=16)(0)
        order = batch_source(data, range(6), 6, (40, 32), 0).chosen(0)
        for image, i in zip(images, order, strict=True):
            np.testing.assert_array_equal(image, normalise(data[i].image, data.mean, data.std))
        assert batch_source(data, range(6), 6, SIZE, 0, augment=False)(0)[0].shape == (6, 3, 32, 32)
        assert batch_source(data, range(6), 6, SIZE, 0)(0)[1].shape == (6,)

    def test_pixels_with_labels_are_not_cut_out(self) -> None:
        with pytest.raises(DataError, match="a cutout of 0 for synthetic/train"):
            batch_source(Synthetic("train", SIZE, length=2), range(2), 2, SIZE, 0, cutout=8)


def test_training_on_shapes_beats_chance() -> None:
    space = darts_space(
        Scale(8, 3, SIZE), 10, "cifar", "classification", ops=("none", "skip_connect", "sep_conv_3x3"), nodes=2
    )
    train, test = Shapes("train", SIZE, length=400), Shapes("test", SIZE, length=100)
    config = TrainConfig(steps=60, batch=16, crop=SIZE, optimizer="sgd", lr=0.1, decay=3e-4)
    training = Training(space, sample(space, np.random.default_rng(1)), config, train)
    for _ in range(config.steps):
        training.advance()
    assert training.judge(test) > 0.3  # chance is 0.1, with a standard error of 0.03
    training.net.eval()
    assert evaluate(training.net, test).pixel_accuracy() == training.best_score


class TestExport:
    @pytest.mark.parametrize(("kind", "shape"), [("labels", (1,)), ("logits", (1, 10)), ("scores", (1, 10))])
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_the_file_ends_in_labels_or_scores(
        self, kind: str, shape: tuple[int, ...], precision: str, tmp_path: Path
    ) -> None:
        from safetensors.torch import save_file

        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = SPACE.build(ARCH, form="deploy")
        save_file(network.state_dict(), tmp_path / "w.safetensors")
        data = Shapes("val", SIZE, length=5)
        traced, facts = export(
            SPACE, ARCH, tmp_path / "w.safetensors", data, tmp_path / "m.onnx", kind=kind, precision=precision
        )
        assert (facts["shape"], facts["dtype"]) == (shape, "uint8" if kind == "labels" else "float32")
        model = onnx.load(tmp_path / "m.onnx")
        (out,) = model.graph.output
        assert (out.name, tuple(d.dim_value for d in out.type.tensor_type.shape.dim)) == (kind, shape)
        assert traced.calls[-1].spec.kind == ("argmax" if kind == "labels" else "linear")

    def test_other_weights_are_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Labels are compared with the network's on many images."""
        from safetensors.torch import save_file

        from hwnas.errors import HwnasError

        save_file(SPACE.build(ARCH, form="deploy").state_dict(), tmp_path / "w.safetensors")
        run = export.__globals__["_run"]
        broken = lambda model, images: (  # noqa: E731
            out := run(model, images),
            out.dtype == np.uint8 and out.__setitem__(slice(None), (out + 1) % 10),
        )[0]
        monkeypatch.setitem(export.__globals__, "_run", broken)
        with pytest.raises(HwnasError, match=r"labels differ from the network's in 5 images"):
            export(SPACE, ARCH, tmp_path / "w.safetensors", Shapes("val", SIZE, length=5), tmp_path / "m.onnx")


@pytest.mark.slow
def test_the_whole_job_on_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / RECIPE
    done("profile", RECIPE, "--engine", "fake")
    done("search", RECIPE)
    said = done("train", RECIPE).out
    assert "best val top-1 accuracy" in said
    log = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log if "val_accuracy" in r] == [2, 5]
    done("export", RECIPE)
    said = done("validate", RECIPE).out
    report, bundle = json.loads((run / "report.json").read_text()), Bundle.load(run / "deploy")
    assert (bundle.output.kind, bundle.output.shape, bundle.output.dtype) == ("labels", (1,), "uint8")
    assert f"test top-1 accuracy  {report['test_accuracy']:.2%}" in said
    assert report["task"] == "classification"
    assert report["scope"] == "network with argmax"
    assert report["accepted"]
    assert report["test_accuracy"] == pytest.approx(report["torch_accuracy"], abs=0.005)
    assert len(report["recall"]) == 10
    assert report["test_accuracy"] == pytest.approx(np.mean(list(report["recall"].values())))  # classes are balanced
    assert not {"iou", "pixel_accuracy", "test_miou"} & set(report)
    assert report["error"] == pytest.approx(0, abs=0.05)
    with Image.open(run / "predictions.png") as picture:
        picture.verify()
    # A file that is worse than its network is refused, with the name of what is worse.
    edit(run / "report.json", accepted=False, test_accuracy=0.1, torch_accuracy=0.2)
    refused = hwnas("validate", RECIPE)
    assert refused.code == 2
    assert "the file's test top-1 accuracy is 10.00%, its network's 20.00%: more than 0.5 points" in refused.err
    self_made = tmp_path / "elsewhere"
    (run / "deploy").rename(self_made)
    for kind, option in (("scores", "--scores"), ("logits", "--logits")):
        done("export", RECIPE, option, "--engine", "onnxruntime")
        one, image = Bundle.load(run / "deploy"), Shapes("test", SIZE)[4].image
        assert (one.output.kind, one.output.shape) == (kind, (1, 10))
        with open_application(one) as application:
            label = application.labels(image)
            assert (label.shape, label.dtype) == ((), np.uint8)
            assert label == application.output(image).argmax()
        (run / "deploy").rename(tmp_path / kind)


def test_a_bundle_classifies_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    from hwnas.runtime import __main__ as runtime
    from tests.test_bundle import make

    save_file(SPACE.build(ARCH, form="deploy").state_dict(), tmp_path / "w.safetensors")
    data = Shapes("val", SIZE, length=5)
    bundle = make(tmp_path / "b", "scores")
    _, facts = export(SPACE, ARCH, tmp_path / "w.safetensors", data, tmp_path / "b" / "model.onnx")
    bundle = replace(
        bundle,
        onnx_sha256=facts["sha256"],
        input=replace(bundle.input, name="image", shape=(1, 3, 32, 32), size=SIZE),
        output=replace(bundle.output, name="labels", kind="labels", shape=(1,), dtype="uint8"),
        classes=data.classes.names,
        palette=data.classes.palette,
    )
    bundle.save()
    Image.fromarray(data[2].image).save(tmp_path / "a.png")
    command = ["run", str(tmp_path / "b"), str(tmp_path / "a.png"), "--out", str(tmp_path / "out.png")]
    assert runtime.main(command) == 0
    said = capsys.readouterr().out
    with open_application(bundle) as application:
        label = int(application.labels(data[2].image))
    assert f"class: {data.classes.names[label]}\n" in said
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    assert {tuple(c) for c in drawn[:, -32:].reshape(-1, 3).tolist()} == {data.classes.palette[label]}


def test_data_of_another_task_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    streets = camvid_folder(tmp_path / "streets")
    for recipe, data, why in (
        (RECIPE, streets, f"{RECIPE} is for classification into 10 classes, streets/train for segmentation into 11"),
        ("darts-tiny", folder, "darts-tiny is for segmentation into 11 classes, cifar10/train for classification"),
    ):
        refused = hwnas("profile", recipe, "--engine", "fake", "--data", data)
        assert refused.code == 2
        assert why in refused.err
    refused = hwnas("search", "darts-cifar10")
    assert "needs the folder cifar-10-batches-py or cifar-10-python.tar.gz; name it with --data" in refused.err


def test_the_papers_scale_is_the_papers() -> None:
    paper = recipes.get("darts-cifar10")
    assert (paper.space.scale, paper.search.scale) == (Scale(36, 20, SIZE), Scale(16, 8, SIZE))
    assert paper.search.steps == 17_578  # 50 epochs of 22,500 images in batches of 64
    assert paper.train.steps == 281_250  # 600 epochs of 45,000 images in batches of 96
    traced = trace_space(paper.space)
    assert traced.calls[-1].spec.kind == "argmax"
    assert traced.calls[-1].out_shape == (1,)
