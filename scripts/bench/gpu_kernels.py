"""How fast our CUDA kernels are: beside what the same card copies, and beside PyTorch.

Each kernel is checked against its reference in numpy, then timed by events on the stream, as a graph, on hot caches and
after the second-level cache was flushed. The bandwidth of the card is that of the kernel `copy` on a buffer that no
cache holds, measured among the others. PyTorch's ways to compute the same run on the same stream, as graphs too.
Prints a table and, as its last line, one JSON object. Ends with 1 if a result is wrong, with 2 if there is no GPU.

example: python scripts/bench/gpu_kernels.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, cast

import numpy as np
from gpu_host import size as size_type

from hwnas.errors import HwnasError
from hwnas.runtime.cuda.kernels import (
    KERNELS,
    copy_grid,
    preprocess,
    preprocess_grid,
    upsample,
    upsample_argmax,
    upsample_argmax_grid,
)
from hwnas.runtime.cuda.timing import Prepared
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.gpu import Gpu
from hwnas.runtime.measuring.measure import Measurement, Samples, StopRule, summarise, visit
from hwnas.show.console import bar, console, table

SIZES = {(1024, 2048): 19, (720, 960): 11}  # Cityscapes and CamVid, with their number of classes
CLASSES = 19  # of any other size
STEPS = (8, 4)  # scores are at an eighth or at a quarter of the size
DTYPES: Mapping[str, type[np.floating[Any]]] = {"f32": np.float32, "f16": np.float16}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIE = 1e-5  # of two scores: what the kernel promises
COPY_OVER_L2 = 16  # size of the buffer that is copied, over that of the second-level cache

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Job:
    """One kernel on one size.

    Attributes:
        kernel: Its name.
        case: The size, for people.
        n_bytes: What it reads and writes, each once.
        run: Puts it on the stream.
        wrong: Returns how many of its results are not those of the reference, and how many are ties.
        theirs: PyTorch's way, from the tensors it is given once; None if it has none.
    """

    kernel: str
    case: str
    n_bytes: int
    run: Callable[[], None]
    wrong: Callable[[], tuple[int, int]]
    theirs: Callable[[Any], Callable[[], Any]] | None = None


class Bench:
    """The GPU, with what must be given back."""

    def __init__(self, gpu: Gpu, stack: ExitStack) -> None:
        """Use `gpu`, inside of its context."""
        self.gpu, self._stack, self._rng = gpu, stack, np.random.default_rng(0)

    def memory(self, n_bytes: int) -> Any:
        """Return memory of the device."""
        made = self.gpu.cuda.memory(n_bytes)
        self._stack.callback(made.close)
        return made

    def to_device(self, array: Array) -> Any:
        """Return memory of the device with a copy of an array in it."""
        made = self.memory(array.nbytes)
        self.gpu.stream().copy_in(made, array)
        self.gpu.stream().synchronize()
        return made

    def from_device(self, memory: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return what is in some memory of the device."""
        out = np.empty(shape, dtype)
        self.gpu.stream().copy_out(out, memory)
        self.gpu.stream().synchronize()
        return out

    def copy(self, mib: int | None) -> Job:
        """Return the copy that tells the bandwidth of the card, of so many MiB."""
        facts = self.gpu.cuda.facts
        n_bytes = min(COPY_OVER_L2 * max(facts.l2_bytes, 1 << 20), facts.memory_bytes // 8)
        n = (n_bytes if mib is None else mib << 20) // 4
        values = np.arange(n, dtype=np.uint32)
        there, back, function = self.to_device(values), self.memory(values.nbytes), self._function("copy")

        def run() -> None:
            self.gpu.stream().launch(function, copy_grid(n), there, back, n)

        def wrong() -> tuple[int, int]:
            return int((self.from_device(back, (n,), np.uint32) != values).sum()), 0

        return Job("copy", f"{values.nbytes >> 20} MiB", 2 * values.nbytes, run, wrong)

    def preprocess(self, kind: str, size: tuple[int, int]) -> Job:
        """Return preprocessing of one image of `size` (height, width)."""
        (height, width), dtype, name = size, DTYPES[kind], f"preprocess_{kind}"
        image = self._rng.integers(0, 256, (1, height, width, 3)).astype(np.uint8)
        shape, gain = (1, 3, height, width), [1 / s for s in STD]
        out_bytes = 3 * height * width * np.dtype(dtype).itemsize
        there, out, function = self.to_device(image), self.memory(out_bytes), self._function(name)

        def run() -> None:
            grid = preprocess_grid(image.shape)
            self.gpu.stream().launch(function, grid, there, out, height * width, *MEAN, *gain)

        def wrong() -> tuple[int, int]:
            got, expected = self.from_device(out, shape, dtype), preprocess(image, MEAN, STD, dtype)
            rtol = 1e-6 if kind == "f32" else 2.0**-10  # of a half one rounding
            close = np.isclose(got.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=1e-6)
            return int((~close).sum()), 0

        def theirs(torch: Any) -> Callable[[], Any]:
            return torch_preprocess(torch, image, kind)

        return Job(name, f"{height}x{width}", image.nbytes + out_bytes, run, wrong, theirs)

    def upsample_argmax(self, kind: str, size: tuple[int, int], classes: int, step: int) -> Job:
        """Return labels of `size` (height, width) from scores that are smaller by `step`."""
        (height, width), dtype, name = size, DTYPES[kind], f"upsample_argmax_{kind}"
        shape = (1, classes, -(-height // step), -(-width // step))
        scores = self._rng.standard_normal(shape, np.float32).astype(dtype)
        there, out, function = self.to_device(scores), self.memory(height * width), self._function(name)

        def run() -> None:
            grid = upsample_argmax_grid(1, size)
            self.gpu.stream().launch(function, grid, there, out, *shape[1:], *size)

        def wrong() -> tuple[int, int]:
            differ = self.from_device(out, (1, *size), np.uint8) != upsample_argmax(scores, size)
            best = np.sort(upsample(scores, size).transpose(0, 2, 3, 1)[differ], axis=1)
            ties = int((best[:, -1] - best[:, -2] < TIE).sum())
            return int(differ.sum()) - ties, ties

        def theirs(torch: Any) -> Callable[[], Any]:
            return torch_upsample_argmax(torch, scores, size)

        case = f"{height}x{width} from 1/{step}, {classes} classes"
        return Job(name, case, scores.nbytes + height * width, run, wrong, theirs)

    def _function(self, name: str) -> Any:
        return self.gpu.cuda.function(KERNELS[name])


class Torch:
    """PyTorch on the same stream, by the engine that has its graphs.

    Attributes:
        gpu: Of the engine.
        version: Of PyTorch.
        torch: The package.
    """

    def __init__(self) -> None:
        """Open the engine.

        Raises:
            HwnasError: If there is no PyTorch with CUDA, or no GPU for it.
        """
        self._engine = cast(Any, open_engine("torch-cuda-graph"))
        import torch

        self.torch, self.gpu, self.version = torch, self._engine.gpu, str(torch.__version__)

    def prepare(self, compute: Callable[[], Any]) -> Prepared:
        """Return PyTorch's work, ready to time."""
        stream = self._engine.stream()

        def work() -> None:
            self.torch.cuda.set_stream(stream)
            with self.torch.inference_mode():
                compute()

        prepared: Prepared = self.gpu.timer().prepare(work, capture=self._engine.capture)
        return prepared

    def close(self) -> None:
        """Give everything back."""
        self.torch.cuda.set_stream(self.torch.cuda.default_stream())
        self._engine.close()


def torch_preprocess(torch: Any, image: Array, kind: str) -> Callable[[], Any]:
    """Return PyTorch's way from an image (1, H, W, 3) to what a network reads; its inputs are on the device."""
    device, dtype = _device(), torch.float32 if kind == "f32" else torch.float16
    there = torch.from_numpy(image).to(device)
    mean, std = (torch.tensor(v, device=device).reshape(1, 3, 1, 1) for v in (MEAN, STD))

    def compute() -> Any:
        planes = there.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return ((planes / 255 - mean) / std).to(dtype)

    return compute


def torch_upsample_argmax(torch: Any, scores: Array, size: tuple[int, int]) -> Callable[[], Any]:
    """Return PyTorch's way from scores (1, C, h, w) to labels (1, H, W); its input is on the device."""
    there = torch.from_numpy(scores).to(_device())

    def compute() -> Any:
        large = torch.nn.functional.interpolate(there, size=size, mode="bilinear", align_corners=False)
        return large.argmax(1).to(torch.uint8)

    return compute


def _device() -> str:
    from hwnas.runtime.engines import torch_cuda

    return torch_cuda.DEVICE


class Timed:
    """Prepared work, as the measuring loop wants it."""

    def __init__(self, prepared: Prepared) -> None:
        """Time `prepared`."""
        self._prepared = prepared

    def time(self, repeats: int, visit: int = 0) -> Samples:
        """Return `repeats` samples."""
        return self._prepared.time(repeats)


def measure(runners: Mapping[str, Timed], rule: StopRule) -> dict[str, Measurement]:
    """Return the measurement of each runner; they are visited in rounds, each round in another order."""
    rng = np.random.default_rng(0)
    visits: dict[str, list[Samples]] = {name: [] for name in runners}
    stops: dict[str, str | None] = dict.fromkeys(runners)
    with bar("measure", rule.max_visits) as update:
        for n in range(rule.max_visits):
            due = [name for name, stop in stops.items() if stop is None]
            for i in rng.permutation(len(due)).tolist():
                visits[due[i]].append(visit(runners[due[i]], n, "device", fresh=n == 0))
                stops[due[i]] = rule.reached([median(v.latency_ms.tolist()) for v in visits[due[i]]])
            update(n + 1)
    return {name: summarise(found, stops[name] or "timeout", "device") for name, found in visits.items()}


def jobs(bench: Bench, sizes: Mapping[tuple[int, int], int], copy_mib: int | None) -> dict[str, Job]:
    """Return all there is to measure, by a name of its own; the copy comes first."""
    made = [bench.copy(copy_mib)]
    for size, classes in sizes.items():
        for kind in DTYPES:
            made.append(bench.preprocess(kind, size))
            made += [bench.upsample_argmax(kind, size, classes, step) for step in STEPS]
    return {f"{job.kernel} {job.case}": job for job in made}


def row(job: Job, ours: Measurement, theirs: Measurement | None, wrong: tuple[int, int]) -> dict[str, Any]:
    """Return what is known of a kernel, for the JSON."""
    cold_ms = float(ours.about["cold_ms"])
    out: dict[str, Any] = {
        "kernel": job.kernel,
        "case": job.case,
        "bytes": job.n_bytes,
        "wrong": wrong[0],
        "ties": wrong[1],
        "cold_ms": cold_ms,
        "gb_s": job.n_bytes / ours.latency_ms / 1e6,
        "cold_gb_s": job.n_bytes / cold_ms / 1e6,
        **asdict(ours),
    }
    if theirs is not None:
        about = theirs.about
        out["torch"] = {"latency_ms": theirs.latency_ms, "cold_ms": about["cold_ms"], "enqueue_ms": about["enqueue_ms"]}
        out["torch_ratio"] = theirs.latency_ms / ours.latency_ms
    return out


def show(rows: list[dict[str, Any]], name: str, torch: str) -> None:
    """Print the figures for people."""
    copy_gb_s = rows[0]["gb_s"]
    shown = [
        [
            r["kernel"],
            r["case"],
            f"{1000 * r['latency_ms']:.1f}",
            f"{1000 * r['cold_ms']:.1f}",
            f"{r['bytes'] / 2**20:.1f}",
            f"{r['gb_s']:.0f}",
            f"{r['cold_gb_s']:.0f}",
            f"{r['cold_gb_s'] / copy_gb_s:.0%}",
            f"{1000 * r['torch']['latency_ms']:.1f}" if "torch" in r else "",
            f"{r['torch_ratio']:.1f}" if "torch" in r else "",
            f"{r['wrong']} wrong" if r["wrong"] else "doubtful" if r["doubtful"] else "ok",
        ]
        for r in rows
    ]
    header = ("kernel", "size", "hot us", "cold us", "MiB", "hot GB/s", "cold GB/s", "of copy", "PyTorch us", "times")
    table(f"kernels on {name}", (*header, "result"), shown, numbers=True)
    console.print(f"the card copies {copy_gb_s:.0f} GB/s, read and written; PyTorch: {torch}", markup=False)


def run(sizes: Mapping[tuple[int, int], int], copy_mib: int | None, rule: StopRule) -> int:
    """Run the benchmark; return the exit code."""
    Gpu().close()  # if there is none, that is what is to be said
    torch, why = None, ""
    try:
        torch = Torch()
    except HwnasError as e:
        why = str(e)
    with ExitStack() as stack:
        gpu = Gpu() if torch is None else torch.gpu
        stack.callback(gpu.close if torch is None else torch.close)
        with gpu.cuda, ExitStack() as inside:
            found = jobs(Bench(gpu, inside), sizes, copy_mib)
            prepared = {name: gpu.timer().prepare(job.run) for name, job in found.items()}
            if torch is not None:
                for name, job in found.items():
                    if job.theirs is not None:
                        prepared[f"torch {name}"] = torch.prepare(job.theirs(torch.torch))
            for one in prepared.values():
                inside.callback(one.close)
            wrong = {}
            for name, job in found.items():
                job.run()
                wrong[name] = job.wrong()
            took = measure({name: Timed(one) for name, one in prepared.items()}, rule)
            device, options = gpu.device(), gpu.options()
    rows = [row(job, took[name], took.get(f"torch {name}"), wrong[name]) for name, job in found.items()]
    said = torch.version if torch is not None else f"not compared ({why})"
    show(rows, str(device["name"]), said)
    out = {"device": device, "options": options, "torch": said, "copy_gb_s": rows[0]["gb_s"], "kernels": rows}
    print(json.dumps(out, allow_nan=False))
    return 1 if any(r["wrong"] for r in rows) else 0


def main() -> int:
    """Read the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shown = ", ".join(f"{h}x{w}" for h, w in SIZES)
    parser.add_argument(
        "--size", type=size_type, action="append", metavar="HxW", help=f"of images, may be given again ({shown})"
    )
    parser.add_argument("--visits", type=int, default=30, help="least visits to each kernel (%(default)s)")
    parser.add_argument(
        "--copy-mib", type=int, metavar="MIB", help=f"size of the copy ({COPY_OVER_L2} times the second-level cache)"
    )
    args = parser.parse_args()
    if args.visits < 1 or (args.copy_mib is not None and args.copy_mib < 1):
        parser.error("--visits and --copy-mib must be at least 1")
    sizes = {size: SIZES.get(size, CLASSES) for size in args.size or SIZES}
    try:
        return run(sizes, args.copy_mib, StopRule(min_visits=args.visits, max_visits=3 * args.visits, min_s=0.0))
    except HwnasError as e:
        print(f"gpu_kernels: {' '.join(str(e).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
