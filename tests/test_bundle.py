"""Deployment bundles: what they say is checked, what they compute is what the network does, on a picture too."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, sha256
from hwnas.ops.onnx_graph import export_op, stand_in
from hwnas.runtime import __main__ as runtime
from hwnas.runtime.cuda.kernels import preprocess
from hwnas.runtime.deploy.bundle import (
    BUNDLE_FILE,
    BuildsBundles,
    Bundle,
    Input,
    OpensBundles,
    Output,
    find_application,
    open_application,
)
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.fake import Fake
from hwnas.runtime.engines.scopes import to_labels
from hwnas.runtime.measuring.device import provenance
from tests.contracts import ENDINGS

SIZE = (32, 48)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CLASSES = {"labels": 3, "logits": 5, "scores": 5, "scores of the image": 3}
COLOURS = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200), (250, 250, 250))


def make(folder: Path, kind: str = "scores", engine: str = "onnxruntime", **changes: Any) -> Bundle:
    """Write a bundle of one op, `ENDINGS[kind]`: argmax over the colours, a convolution, or the mean of the colours."""
    folder.mkdir(exist_ok=True)
    content = export_op(stand_in(ENDINGS[kind]), ENDINGS[kind].in_shapes).SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    n = CLASSES[kind]
    shapes = {"labels": (1, 32, 48), "logits": (1, n, 32, 48), "scores": (1, n, 16, 24), "scores of the image": (1, n)}
    shape = shapes[kind]
    opened = open_engine(engine)
    bundle = Bundle(
        folder=folder,
        onnx="model.onnx",
        onnx_sha256=sha256(content),
        engine=engine,
        precision="fp32",
        threads=1,
        versions={"hwnas": "0", "opset": 17, "engine": "1"},
        device=json.loads(json.dumps(provenance(opened))),
        input=Input("x0", (1, 3, *SIZE), MEAN, STD, SIZE),
        output=Output("y", kind.split(maxsplit=1)[0], shape, "uint8" if kind == "labels" else "float32"),
        classes=tuple(f"class {i}" for i in range(n)),
        palette=COLOURS[:n],
        architecture="abc",
        scale={"channels": 4, "cells": 3, "size": [32, 48]},
        predicted_ms=1.5,
        budget_ms=2.0,
        weights_sha256="0" * 64,
        parity={"score_error": 1e-6},
    )
    bundle = replace(bundle, **changes)
    bundle.save()
    return bundle


def photo(seed: int = 0, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def expected(kind: str, image: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return what the network of `make` gives for an image, and its labels (32, 48)."""
    with torch.no_grad():
        out = stand_in(ENDINGS[kind])(torch.from_numpy(preprocess(image[None], MEAN, STD))).numpy()
    return out, to_labels(out, SIZE)[0]


def loaded(folder: Path) -> Bundle | str:
    """Return a bundle, or why it was refused."""
    try:
        return Bundle.load(folder)
    except HwnasError as e:
        return str(e)


def signed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle's file as one who makes the checksum fit."""
    content = json.loads(path.read_text())
    change(content)
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": sha256(canonical_json(content))}))


class TestFile:
    @pytest.mark.parametrize("kind", ENDINGS)
    def test_round_trip(self, tmp_path: Path, kind: str) -> None:
        bundle = make(tmp_path, kind)
        again = Bundle.load(tmp_path)
        assert again == bundle
        assert again.digest == bundle.digest
        assert again.path.read_bytes() == (tmp_path / "model.onnx").read_bytes()
        assert sorted(p.name for p in tmp_path.iterdir()) == [BUNDLE_FILE, "model.onnx"]

    def test_it_lies_where_it_was_carried(self, tmp_path: Path) -> None:
        bundle = make(tmp_path / "here")
        (tmp_path / "here").rename(tmp_path / "there")
        assert Bundle.load(tmp_path / "there") == replace(bundle, folder=tmp_path / "there")

    def test_every_change_of_a_byte_is_detected_or_means_nothing(self, tmp_path: Path) -> None:
        bundle, path = make(tmp_path), tmp_path / BUNDLE_FILE
        content = path.read_bytes()
        for at, byte in enumerate(content):
            for other in {byte ^ 1, byte ^ 0x20, ord("0"), 0xFF} - {byte}:
                path.write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
                found = loaded(tmp_path)
                if isinstance(found, str):
                    assert str(path) in found
                    assert "\n" not in found
                else:
                    assert found == bundle
                    assert chr(byte) in "e\n"  # of 1e-06, or the end

    def test_half_a_file_is_refused(self, tmp_path: Path) -> None:
        make(tmp_path)
        path = tmp_path / BUNDLE_FILE
        content = path.read_bytes()
        for part in (b"", content[: len(content) // 2], b"[]", b"null", b"{}", b'{"schema": 1}', b"\xff"):
            path.write_bytes(part)
            with pytest.raises(HwnasError, match=BUNDLE_FILE):
                Bundle.load(tmp_path)
        path.unlink()
        with pytest.raises(HwnasError, match=r"cannot read a bundle at .*engine\.json: No such file"):
            Bundle.load(tmp_path)

    @pytest.mark.parametrize("name", ["model.onnx", "model.engine"])
    def test_a_file_that_is_damaged_or_missing_is_named(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "model.engine").write_bytes(b"built")
        make(tmp_path, built={"file": "model.engine", "sha256": sha256(b"built"), "inspector": []})
        assert Bundle.load(tmp_path).built == {"file": "model.engine", "sha256": sha256(b"built"), "inspector": []}
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(HwnasError, match=rf"{name} does not match its checksum in engine\.json; copy .* export"):
            Bundle.load(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(HwnasError, match=rf"cannot read .*{name} of the bundle: No such file.*; copy"):
            Bundle.load(tmp_path)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda d: d.update(schema=2), r"a bundle of schema 1 was expected, got 2; copy .* export anew"),
            (lambda d: d.update(more=1), "is not a whole bundle: expected the fields architecture, budget_ms"),
            (lambda d: d.pop("classes"), "is not a whole bundle: expected the fields"),
            (lambda d: d.update(input=[]), "is not a whole bundle"),
            (lambda d: d["input"].update(crop=1), "is not a whole bundle"),
            (lambda d: d["output"].pop("shape"), "is not a whole bundle: 'shape'"),
            (lambda d: d.update(precision="int8"), "precision cannot be 'int8'"),
            (lambda d: d.update(threads=0), "threads cannot be 0"),
            (lambda d: d.update(threads="1"), "is not a whole bundle"),
            (lambda d: d["input"].update(size=[32, 40]), r"input.shape cannot be \(1, 3, 32, 48\)"),
            (lambda d: d["input"].update(layout="NHWC"), "input.dtype, layout and colour cannot be .*'NHWC'"),
            (lambda d: d["input"].update(mean=[0.5]), "input.mean cannot be"),
            (lambda d: d["input"].update(std=[0.5, 0, 0.5]), "input.std cannot be"),
            (lambda d: d["output"].update(kind="depth"), "output.kind cannot be 'depth'"),
            (lambda d: d["output"].update(dtype="uint8"), "output.dtype cannot be 'uint8'"),
            (lambda d: d["output"].update(shape=[1, 4, 16, 24]), r"output.shape cannot be \(1, 4, 16, 24\)"),
            (lambda d: d["output"].update(kind="logits"), r"output.shape cannot be \(1, 5, 16, 24\)"),
            (lambda d: d["palette"].pop(), "palette cannot be"),
            (lambda d: d.update(onnx="../model.onnx"), r"a file must be a name in the folder, got '\.\./model\.onnx'"),
            (lambda d: d.update(built={}), "cannot read .*None of the bundle"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str
    ) -> None:
        make(tmp_path)
        signed(tmp_path / BUNDLE_FILE, change)
        with pytest.raises(HwnasError, match=match) as refusal:
            Bundle.load(tmp_path)
        assert str(tmp_path) in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_nothing_is_written_that_could_not_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(HwnasError, match="model.onnx does not match its checksum"):
            make(tmp_path, onnx_sha256="0" * 64)
        with pytest.raises(HwnasError, match="threads cannot be 0"):
            make(tmp_path, threads=0)
        assert not (tmp_path / BUNDLE_FILE).exists()


class Building(Fake):
    """An engine that builds something that ships, and has an application of its own: all is of one rare class."""

    capabilities = replace(Fake.capabilities, runs_applications=True, builds=True)

    def build_bundle(
        self, onnx: Path, folder: Path, update: Callable[[str, int, int], None], compatible: str | None = None
    ) -> dict[str, Any]:
        content = b"built of " + sha256(onnx.read_bytes()).encode()
        (folder / "model.engine").write_bytes(content)
        update("build", 1, 1)
        return {"file": "model.engine", "sha256": sha256(content), "timing_cache_sha256": None, "inspector": []}

    def open_application(self, bundle: Bundle) -> Constant:
        return Constant(bundle)


class Constant:
    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def __enter__(self) -> Constant:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def labels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.full(image.shape[:2], 10, np.uint8)

    def output(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        return np.ones(self._bundle.output.shape, self._bundle.output.dtype)


class TestApplication:
    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize("kind", ENDINGS)
    def test_labels_are_those_of_the_network(self, tmp_path: Path, kind: str, engine: str) -> None:
        make(tmp_path, kind, engine)
        with open_application(Bundle.load(tmp_path)) as application:
            for seed in range(3):
                image = photo(seed)
                output, labels = expected(kind, image)
                got = application.output(image)
                assert got.dtype == output.dtype
                np.testing.assert_allclose(got, output, rtol=1e-4, atol=1e-5)
                found = application.labels(image)
                of_image = kind == "scores of the image"
                assert (found.shape, found.dtype) == (() if of_image else SIZE, np.uint8)
                assert (found == labels).mean() > 0.999  # ties
                assert of_image or len(np.unique(found)) > 1

    def test_another_image_is_refused(self, tmp_path: Path) -> None:
        with open_application(make(tmp_path)) as application:
            for image in (photo(size=(32, 40)), photo().astype(np.float32), photo()[:, :, 0]):
                with pytest.raises(HwnasError, match=r"expected an image uint8 \(32, 48, 3\), got .*; resize it"):
                    application.labels(image)

    def test_it_is_entered_once(self, tmp_path: Path) -> None:
        application = open_application(make(tmp_path))
        with pytest.raises(HwnasError, match="use it inside a with block"):
            application.labels(photo())
        with application, pytest.raises(HwnasError, match="was entered before"):
            application.__enter__()
        with pytest.raises(HwnasError, match="is closed"):
            application.labels(photo())

    @pytest.mark.parametrize("engine", ["fake", "torch"])
    def test_an_engine_that_computes_no_files_is_refused(self, tmp_path: Path, engine: str) -> None:
        bundle = make(tmp_path, engine=engine)
        assert find_application(bundle) is None
        with pytest.raises(HwnasError, match=f"engine '{engine}' computes no files; export .* --engine onnxruntime"):
            open_application(bundle)

    def test_an_engine_may_have_an_application_of_its_own(self, tmp_path: Path) -> None:
        bundle = make(tmp_path, engine=f"{__name__}:Building")
        with open_application(bundle) as application:
            assert isinstance(application, Constant)
        assert isinstance(Building(), OpensBundles)
        assert isinstance(Building(), BuildsBundles)

    def test_an_engine_that_cannot_compute_so_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(HwnasError, match="engine 'onnxruntime' computes in fp32, got 'fp16'"):
            open_application(make(tmp_path, precision="fp16"))


class TestOnAPicture:
    @pytest.fixture
    def street(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
        """A picture beside a bundle in the current directory."""
        monkeypatch.chdir(tmp_path)
        make(Path("deploy"))
        Image.fromarray(photo()).save("street.png")
        return photo()

    @pytest.mark.parametrize("overlay", [False, True])
    def test_picture_and_labels_are_drawn_side_by_side(
        self, street: NDArray[np.uint8], capsys: pytest.CaptureFixture[str], overlay: bool
    ) -> None:
        assert runtime.main(["run", "deploy", "street.png", *(["--overlay"] if overlay else [])]) == 0
        labels = expected("scores", street)[1]
        drawn = np.asarray(COLOURS, np.uint8)[labels]
        with Image.open("street-labels.png") as file:
            got = np.asarray(file)
        assert got.shape == (32, 2 * 48 + 4, 3)
        np.testing.assert_array_equal(got[:, :48], street)
        wanted = street // 2 + drawn // 2 if overlay else drawn
        assert (got[:, 52:] == wanted).all(axis=2).mean() > 0.999
        said = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0] for line in said[:5]] == [f"class {i}" for i in range(5)]
        shares = [float(line.split()[-1].rstrip("%")) for line in said[:5]]
        np.testing.assert_allclose(shares, 100 * np.bincount(labels.reshape(-1), minlength=5) / labels.size, atol=0.15)
        assert " ms from picture in memory to labels" in said[5]
        assert said[5].endswith("with onnxruntime in fp32")
        assert said[6:] == ["wrote street-labels.png"]

    def test_a_picture_of_another_size_is_resized_with_a_note(
        self, street: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.fromarray(photo(size=(50, 60))).convert("L").save("grey.jpg")
        assert runtime.main(["run", "deploy", "grey.jpg", "--out", "out.PNG"]) == 0
        said = capsys.readouterr().out
        assert said.startswith("note: grey.jpg is 50x60 (height x width), resized to 32x48\n")
        with Image.open("grey.jpg") as file, Image.open("out.PNG") as drawn:
            wanted = file.convert("RGB").resize((48, 32), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(np.asarray(drawn)[:, :48], np.asarray(wanted))

    def test_nothing_is_overwritten_unasked(
        self, street: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("street-labels.png").write_bytes(b"mine")
        assert runtime.main(["run", "deploy", "street.png"]) == 2
        assert "street-labels.png is there already; name another file with --out" in capsys.readouterr().err
        assert Path("street-labels.png").read_bytes() == b"mine"
        assert runtime.main(["run", "deploy", "street.png", "--force"]) == 0
        assert Path("street-labels.png").read_bytes() != b"mine"

    @pytest.mark.parametrize(
        ("args", "match"),
        [
            (("nothing", "street.png"), "cannot read a bundle at nothing/engine.json: No such file"),
            (("deploy", "none.png"), "cannot decode none.png (No such file or directory); replace"),
            (("deploy", "deploy"), "cannot decode deploy (Is a directory)"),
            (("deploy", "deploy/model.onnx"), "cannot decode deploy/model.onnx (cannot identify"),
            (("deploy", "half.png"), "cannot decode half.png ("),
            (("deploy", "street.png", "--out", "labels.jpg"), "a file name that ends in .png, got labels.jpg"),
        ],
    )
    def test_what_cannot_be_used_is_refused_in_one_line(
        self, street: NDArray[np.uint8], capsys: pytest.CaptureFixture[str], args: tuple[str, ...], match: str
    ) -> None:
        content = Path("street.png").read_bytes()
        Path("half.png").write_bytes(content[: len(content) // 2])
        before = sorted(Path().rglob("*"))
        assert runtime.main(["run", *args]) == 2
        said = capsys.readouterr()
        assert match in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert sorted(Path().rglob("*")) == before

    def test_a_picture_that_is_too_large_is_refused(
        self, street: NDArray[np.uint8], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for place, limit in (("hwnas.decode.MAX_PIXELS", 1000), ("PIL.Image.MAX_IMAGE_PIXELS", 700)):
            monkeypatch.setattr(place, limit)  # Pillow refuses what is above twice its own limit
            assert runtime.main(["run", "deploy", "street.png"]) == 2
            assert "street.png has more than 0 megapixels; scale it down" in capsys.readouterr().err

    def test_without_pillow_the_extra_is_named(
        self, street: NDArray[np.uint8], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        assert runtime.main(["run", "deploy", "street.png"]) == 2
        assert "PIL.Image is not installed; run: pip install 'hwnas[image]'" in capsys.readouterr().err
