"""A deployment bundle: a folder with an ONNX file and `engine.json`, which says all it takes to run it.

A box runs it with numpy and the engine alone: ``open_application(Bundle.load(folder))``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, read_json, sha256, write_atomic
from hwnas.images import normalise
from hwnas.runtime.engines import open_engine, trt_build
from hwnas.runtime.engines.base import Array, Engine, Runner
from hwnas.runtime.engines.scopes import to_labels
from hwnas.runtime.measuring.plan import PRECISIONS, Shape

SCHEMA = 1
BUNDLE_FILE = "engine.json"
KINDS = ("labels", "logits", "scores")
# Who else may take what an engine builds: later releases of it, all GPUs from Ampere on, those of the same kind.
COMPATIBLE = ("version", *trt_build.COMPATIBLE)
REMEDY = "copy the whole folder again, or remove it and export anew"
Update = trt_build.Update


@dataclass(frozen=True)
class Input:
    """What the network reads.

    Attributes:
        name: In the file.
        shape: (1, 3, height, width).
        mean: Of red, green and blue, where white is 1: subtracted.
        std: The same: divided by.
        size: (height, width).
        dtype: Of the file's input, whatever is computed in.
        layout: Of `shape`.
        colour: Order of the channels.
    """

    name: str
    shape: Shape
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int]
    dtype: str = "float32"
    layout: str = "NCHW"
    colour: str = "RGB"


@dataclass(frozen=True)
class Output:
    """What the network gives.

    Attributes:
        name: In the file.
        kind: ``"labels"`` (1, height, width); ``"logits"``, scores of each class (1, classes, height, width);
            ``"scores"``, the same before they are upsampled: (1, classes, h, w). Of a network that classifies images
            (1,), and twice (1, classes).
        shape: As above.
        dtype: ``"uint8"`` of labels, else ``"float32"``.
    """

    name: str
    kind: str
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Bundle:
    """A deployment bundle.

    Attributes:
        folder: Where it lies; the one thing that is not in `engine.json`.
        onnx: Name of the ONNX file in the folder.
        onnx_sha256: Hex digest of it.
        engine: Name of the engine that it is for.
        precision: What that computes in, one of `hwnas.runtime.measuring.plan.PRECISIONS`.
        threads: Of the engine.
        versions: Of ``hwnas``, of ONNX's ``opset`` and of the ``engine``.
        device: Where it was made: the engine's provenance.
        input: The image.
        output: What comes out.
        classes: Name of each class.
        palette: RGB of each class.
        architecture: Id of the architecture.
        scale: Channels, cells and size it was built at.
        predicted_ms: What the latency table says the network takes, with upsampling and argmax.
        budget_ms: What it may take.
        weights_sha256: Hex digest of the weights it was exported from.
        parity: How far the file is from the network it was exported from.
        built: What the engine built of the file; at least ``file``, a name in the folder, and its ``sha256``. None for
            engines that take the file as it is.
    """

    folder: Path
    onnx: str
    onnx_sha256: str
    engine: str
    precision: str
    threads: int
    versions: Mapping[str, Any]
    device: Mapping[str, Any]
    input: Input
    output: Output
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    architecture: str
    scale: Mapping[str, Any]
    predicted_ms: float
    budget_ms: float
    weights_sha256: str
    parity: Mapping[str, Any]
    built: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / self.onnx

    @property
    def classifies(self) -> bool:
        """Whether it gives one label an image instead of one a pixel."""
        return len(self.output.shape) < 3

    @property
    def digest(self) -> str:
        """Hex digest of all that `engine.json` says, and so of all files."""
        return sha256(canonical_json(self._content()))

    def save(self) -> None:
        """Write `engine.json`, last of all: where it is, the bundle is whole.

        Raises:
            HwnasError: If it says what cannot be, or a file is missing or not the one it says.
        """
        self._check()
        write_atomic(self.folder / BUNDLE_FILE, canonical_json({"sha256": self.digest, **self._content()}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read a bundle and check all of it: schema, checksum, every field, every file.

        Raises:
            HwnasError: Naming the file.
        """
        path = folder / BUNDLE_FILE
        content = read_json(path, "a bundle")
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            found = content.get("schema") if isinstance(content, dict) else type(content).__name__
            raise HwnasError(f"{path}: a bundle of schema {SCHEMA} was expected, got {found!r}; {REMEDY}")
        said = content.pop("sha256", None)
        if said != sha256(canonical_json(content)):
            raise HwnasError(f"{path} was changed after it was written: its checksum does not fit; {REMEDY}")
        try:
            bundle = cls(folder, **_values(content))
            bundle._check()
        except HwnasError:
            raise  # names the file already
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise HwnasError(f"{path} is not a whole bundle: {e}; {REMEDY}") from e
        return bundle

    def _content(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **{k: v for k, v in asdict(self).items() if k != "folder"}}

    def _check(self) -> None:
        """Raise HwnasError unless all of this can be, and the files are those it says."""
        height, width = self.input.size
        labels, full = self.output.kind == "labels", (1, len(self.classes), height, width)
        shape = self.output.shape
        reduced = self.output.kind == "scores" and len(shape) == 4 and shape[:2] == full[:2]
        of_image = shape == ((1,) if labels else full[:2])
        fixed = (self.input.dtype, self.input.layout, self.input.colour)
        good = {
            "precision": (self.precision in PRECISIONS, self.precision),
            "threads": (self.threads >= 1, self.threads),
            "input.shape": (self.input.shape == (1, 3, height, width), self.input.shape),
            "input.dtype, layout and colour": (fixed == ("float32", "NCHW", "RGB"), fixed),
            "input.mean": (len(self.input.mean) == 3 and all(map(math.isfinite, self.input.mean)), self.input.mean),
            "input.std": (len(self.input.std) == 3 and min(self.input.std) > 0, self.input.std),
            "output.kind": (self.output.kind in KINDS, self.output.kind),
            "output.dtype": (self.output.dtype == ("uint8" if labels else "float32"), self.output.dtype),
            "output.shape": (
                reduced or of_image or shape == ((1, height, width) if labels else full),
                shape,
            ),
            "palette": (len(self.palette) == len(self.classes) and {len(c) for c in self.palette} == {3}, self.palette),
        }
        wrong = next(((name, value) for name, (holds, value) in good.items() if not holds), None)
        if wrong is not None:
            raise HwnasError(f"{self.folder / BUNDLE_FILE}: {wrong[0]} cannot be {wrong[1]!r}; {REMEDY}")
        files = [(self.onnx, self.onnx_sha256)]
        if self.built is not None:
            files.append((str(self.built.get("file")), str(self.built.get("sha256"))))
        for name, digest in files:
            _check_file(self.folder, name, digest)


def _values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a bundle."""
    names = {"schema", *(f.name for f in fields(Bundle))} - {"folder"}
    if set(content) != names:
        raise ValueError(f"expected the fields {', '.join(sorted(names))}, got {', '.join(sorted(content))}")
    values = {k: v for k, v in content.items() if k != "schema"}
    tuples = {k: tuple(v) for k, v in values["input"].items() if isinstance(v, list)}
    return values | {
        "input": Input(**{**values["input"], **tuples}),
        "output": Output(**{**values["output"], "shape": tuple(values["output"]["shape"])}),
        "classes": tuple(values["classes"]),
        "palette": tuple(tuple(colour) for colour in values["palette"]),
    }


def _check_file(folder: Path, name: str, digest: str) -> None:
    path = folder / name
    if Path(name).name != name:
        raise HwnasError(f"{folder / BUNDLE_FILE}: a file must be a name in the folder, got {name!r}; {REMEDY}")
    try:
        content = path.read_bytes()
    except OSError as e:
        raise HwnasError(f"cannot read {path} of the bundle: {e.strerror}; {REMEDY}") from e
    if sha256(content) != digest:
        raise HwnasError(f"{path} does not match its checksum in {BUNDLE_FILE}; {REMEDY}")


class Application(Protocol):
    """From a camera image to labels, by the engine of a bundle. A context manager, used once."""

    def __enter__(self) -> Application:
        """Load the network.

        Raises:
            HwnasError: If it cannot be loaded.
        """

    def __exit__(self, *exc: object) -> None:
        """Release everything."""

    def labels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the class of each pixel (height, width) of an image RGB (height, width, 3) of the bundle's size.

        A network that classifies images gives one class, ().

        Raises:
            HwnasError: If the image is another, or the engine fails.
        """

    def output(self, image: NDArray[np.uint8]) -> Array:
        """Return what the network itself gives for an image, in the shape of the bundle's output. For checks."""


@runtime_checkable
class OpensModels(Engine, Protocol):
    """An engine that runs an ONNX file from host to host."""

    def open_model(self, model: Path) -> Runner:
        """Return a runner for a file outside of any plan."""


@runtime_checkable
class OpensBundles(Engine, Protocol):
    """An engine with an application of its own: one that does all of it on its device."""

    def open_application(self, bundle: Bundle) -> Application:
        """Return the application of a bundle."""


@runtime_checkable
class BuildsBundles(Engine, Protocol):
    """An engine that builds something of an ONNX file that ships with it."""

    def build_bundle(self, onnx: Path, folder: Path, update: Update, compatible: str | None = None) -> dict[str, Any]:
        """Build into the bundle's folder.

        Args:
            onnx: The file.
            folder: Of the bundle.
            update: Told of progress.
            compatible: What else is to take it, one of `COMPATIBLE`.

        Returns:
            JSON values for `Bundle.built`: ``file``, ``sha256``, and what else there is to say.
        """


def open_application(bundle: Bundle) -> Application:
    """Return the application of a bundle, by its own engine: not entered yet.

    Raises:
        HwnasError: If the engine is not here, or computes no files.
        MissingExtra: If its package is not installed.
    """
    found = find_application(bundle)
    if found is None:
        raise HwnasError(f"the engine {bundle.engine!r} computes no files; export for another: --engine onnxruntime")
    return found


def find_application(bundle: Bundle) -> Application | None:
    """Return what `open_application` does, and None for an engine that computes no files: a formula, for one."""
    engine = open_engine(bundle.engine, bundle.threads, bundle.precision)
    can = engine.capabilities
    if can.runs_applications:
        return cast(OpensBundles, engine).open_application(bundle)
    if can.runs_files:
        return HostApplication(bundle, cast(OpensModels, engine).open_model(bundle.path))
    return None


class HostApplication:
    """An application whose network runs from host to host; the rest is numpy."""

    def __init__(self, bundle: Bundle, runner: Runner) -> None:
        """Join a bundle and a runner of its file."""
        self._input, self._output, self._runner = bundle.input, bundle.output, runner

    def __enter__(self) -> HostApplication:
        """Load the network."""
        self._runner.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        """Release everything."""
        self._runner.__exit__(*exc)

    def labels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the class of each pixel; see `Application`."""
        return np.asarray(to_labels(self.output(image), self._input.size)[0])

    def output(self, image: NDArray[np.uint8]) -> Array:
        """Return what the network gives; see `Application`."""
        check_image(image, self._input.size)
        planes = normalise(image[None], self._input.mean, self._input.std)
        return self._runner.run({self._input.name: planes})[self._output.name]


def check_image(image: NDArray[np.uint8], size: tuple[int, int]) -> None:
    """Raise HwnasError unless an image is RGB uint8 of `size` (height, width)."""
    if image.shape != (*size, 3) or image.dtype != np.uint8:
        raise HwnasError(f"expected an image uint8 {(*size, 3)}, got {image.dtype} {image.shape}; resize it")
