"""Losses, trainings and searches whose results do not depend on the number of processes; see test_distributed.py.

As a program, starts groups of processes, which compute all of them, or run hwnas.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import TCPStore

from hwnas import cli, jobs
from hwnas.data import IGNORE_LABEL, Synthetic
from hwnas.data.base import CLASSIFICATION, SEGMENTATION
from hwnas.errors import DataError
from hwnas.learn.device import Context
from hwnas.learn.distributed import World, joined
from hwnas.learn.losses import criterion
from hwnas.learn.training import TrainConfig, Training
from hwnas.ops import layers
from hwnas.ops.synced import synchronise
from hwnas.search.functional import Functional
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.relax import SinglePath
from hwnas.spaces import Scale, darts_space, sample

Values = dict[str, Tensor]
SIZE, CROP = (16, 24), (16, 24)
STEPS = 3
SPACE = darts_space(Scale(4, 3, SIZE), 11, nodes=2, head_channels=8)
ARCH = sample(SPACE, np.random.default_rng(0))
TRAIN = TrainConfig(steps=8, batch=4, crop=CROP, evaluate_every=4, lr=1e-3)
SEARCHED = darts_space(
    Scale(4, 3, SIZE),
    11,
    ops=("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3", "image_pool"),
    nodes=2,
    head_channels=8,
)
SEARCH = SearchConfig(SEARCHED.scale, steps=8, warmup=1, batch=4, crop=CROP, w_lr=0.1, alpha_lr=0.02)


class Wide(Context):
    """Gives images in float64, in which nothing is amplified that several processes sum in another order."""

    def batch(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return images and labels."""
        images, labels = super().batch(batch)
        return images.double(), labels


def training(config: TrainConfig, world: World) -> Values:
    """Return losses, score and statistics of a training of a few steps, and what SGD has made of the weights."""
    t = Training(SPACE, ARCH, config, Synthetic("train", SIZE, length=9), world=world)
    losses = [t.advance()["loss"] for _ in range(STEPS)]
    score = torch.tensor(t.judge(Synthetic("val", SIZE, length=3)))
    trained = {**_floats(t.net), **_floats(t.judged, "judged")}
    # Adam moves a weight whose gradient is rounding alone as far as any other.
    kept = {k: v for k, v in trained.items() if config.optimizer == "sgd" or "running" in k}
    return {"losses": torch.stack(losses), "score": score, **kept}


def distilled(world: World) -> Values:
    """Return the losses of a training with a teacher."""
    teacher = nn.Conv2d(3, 11, 3, padding=1)
    with torch.no_grad():
        for p in teacher.parameters():
            p.copy_(torch.linspace(-0.2, 0.2, p.numel()).view(p.shape))

    def loss(images: Tensor, scores: Tensor) -> Tensor:
        return F.mse_loss(scores, teacher(images).detach())

    t = Training(SPACE, ARCH, TRAIN, Synthetic("train", SIZE, length=9), teacher=loss, world=world)
    return {"losses": torch.stack([t.advance()["loss"] for _ in range(STEPS)])}


def searching(config: SearchConfig, world: World) -> Values:
    """Return losses, alphas, weights and statistics of a search of a few steps, in float64."""
    s = BilevelSearch(SEARCHED, config, Synthetic("train", SIZE, length=9), world=world)
    s.net.double()
    s.alphas.double()
    s._functional, s.context = Functional(s.net), Wide()
    s._even = {name: even.double() for name, even in s._even.items()}
    lines = [s.advance() for _ in range(STEPS)]
    losses = {k: torch.stack([m[k] for m in lines if k in m]) for k in ("train_loss", "val_loss") if k in lines[-1]}
    return {**losses, **_floats(s.alphas, "alphas"), **_floats(s.net)}


def loss(config: TrainConfig, classified: bool, world: World) -> Values:
    """Return a loss of a batch with void pixels, more in its second half, and its gradient by a common factor."""
    rng = np.random.default_rng(3)
    shape = (6,) if classified else (6, 5, 7)
    labels = rng.integers(0, 11, shape)
    if not classified:
        labels[rng.random(shape) < np.linspace(0.1, 0.9, 6)[:, None, None]] = IGNORE_LABEL
    scores = torch.from_numpy(rng.normal(size=(6, 11, *shape[1:])))
    n = 6 // world.size
    own = slice(world.rank * n, (world.rank + 1) * n)
    weights = torch.linspace(0.3, 2.0, 11, dtype=torch.float64)
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    of = criterion(config, CLASSIFICATION if classified else SEGMENTATION, weights, world)
    value = of(scores[own] * factor, torch.from_numpy(labels)[own])
    (grad,) = torch.autograd.grad(value, factor)
    return {"loss": world.total(value.detach()), "grad": world.total(grad)}


def norm(world: World) -> Values:
    """Return what a BatchNorm gives, its gradients of first and second order, and its statistics."""
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.normal(40.0, 0.5, (4, 3, 5, 6)))
    n = 4 // world.size
    own = x[world.rank * n : (world.rank + 1) * n].clone().requires_grad_()
    net = nn.Sequential(nn.BatchNorm2d(3)).double()
    synchronise(net, world.size)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    y = net(own)
    first = torch.autograd.grad((y**3).sum(), [own, *net.parameters()], create_graph=True)
    out = {"weight": world.total(first[1]), "bias": world.total(first[2])}
    (second,) = torch.autograd.grad((first[0] ** 2).sum(), own)
    maps = {"y": y, "x": first[0], "second": second}
    for name, value in maps.items():
        whole = torch.zeros_like(x)
        whole[world.rank * n : (world.rank + 1) * n] = value.detach()
        out[name] = world.total(whole)
    return {**out, **_floats(net)}


def image_pooling(world: World) -> Values:
    """Return a pooling of one image in each process: there is one value a channel here, and two in all."""
    op = layers.ImagePooling(3, 4).double()
    with torch.no_grad():
        op.conv.weight.copy_(torch.linspace(-1, 1, 12).view(4, 3, 1, 1))
    synchronise(op, world.size)
    x = torch.linspace(-1, 1, 2 * 3 * 4 * 4, dtype=torch.float64).view(2, 3, 4, 4) ** 3
    n = 2 // world.size
    return {"sum": world.total(op(x[world.rank * n : (world.rank + 1) * n]).sum()), **_floats(op)}


# A verb imports its job when it is called: here, before processes are forked.
_ = [getattr(jobs, name) for name in jobs.__all__]


def _floats(module: nn.Module, name: str = "net") -> Values:
    return {f"{name}.{k}": v.detach().clone() for k, v in module.state_dict().items() if v.is_floating_point()}


CASES: dict[str, Callable[[World], Values]] = {
    **{
        f"loss {name}": partial(loss, TrainConfig(1, 1, (8, 8), **settings), classified)
        for name, classified, settings in (
            ("ce", False, {}),
            ("ce smoothed", False, {"smoothing": 0.1}),
            ("ce classified", True, {"smoothing": 0.1}),
            ("ohem by share", False, {"loss": "ohem", "ohem_threshold": 1e-3, "ohem_kept": 0.3}),
            ("ohem by threshold", False, {"loss": "ohem", "ohem_threshold": 0.3, "ohem_kept": 0.01}),
            ("focal", False, {"loss": "focal"}),
            ("dice", False, {"dice_weight": 0.5}),
        )
    },
    "norm": norm,
    "image pooling": image_pooling,
    "training": partial(training, TRAIN),
    "training by SGD, averaged": partial(
        training, replace(TRAIN, optimizer="sgd", lr=0.01, accumulate=2, average=0.9, recalibrate=2)
    ),
    "training with an auxiliary head and drop path": partial(
        training, replace(TRAIN, aux_weight=0.4, drop_path=0.3, loss="ohem", dice_weight=0.5, freeze_norm=True)
    ),
    "training with a teacher": distilled,
    **{
        f"search {order} {evaluation}": partial(searching, replace(SEARCH, order=order, evaluation=evaluation))
        for order, evaluation in (
            ("first", "fast"),
            ("first", "lean"),
            ("first", "plain"),
            ("second", "fast"),
            ("second-exact", "plain"),
        )
    },
    "search single-level": partial(searching, replace(SEARCH, level="single", accumulate=2)),
    "search single-path": partial(searching, replace(SEARCH, relaxation=SinglePath())),
}


class Word(TypedDict):
    """What is to be run in several processes.

    Attributes:
        folder: Where.
        ranks: How many.
        command: Of hwnas; or the file that gets the values of all cases.
        printed: The file that gets what they print.
        victim: Rank of the process that something happens to; -1 for none.
        step: At the beginning of which step of a training.
        fate: ``"kill"``, or the message of an error.
    """

    folder: str
    ranks: int
    command: list[str]
    printed: str
    victim: int
    step: int
    fate: str


def compute(path: str) -> int:
    """Compute all cases."""
    with joined() as world:
        out = {name: case(world) for name, case in CASES.items()}
        if world.rank == 0:
            torch.save(out, path)
    return 0


def befall(word: Word) -> None:
    """Let something happen to this process."""
    plain = Training.advance

    def advance(self: Training) -> dict[str, Any]:
        if self.step == word["step"]:
            if word["fate"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError(word["fate"])
        return plain(self)

    Training.advance = advance  # type: ignore[method-assign]


def one(word: Word, rank: int, port: int) -> int:
    """Be one of the processes; return its exit code."""
    os.chdir(word["folder"])
    where = {"RANK": rank, "WORLD_SIZE": word["ranks"], "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": word["ranks"]}
    where |= {"MASTER_PORT": port, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ.update({k: str(v) for k, v in where.items()})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    out = os.open(word["printed"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if rank == word["victim"]:
        befall(word)
    try:
        return compute(word["command"][1]) if word["command"][0] == "compute" else cli.main(word["command"])
    except SystemExit as e:
        return int(str(e.code))
    except Exception:  # noqa: BLE001 - the test that reads what was printed says which
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    """Read words as lines of JSON, do each in processes of its own, and print their exit codes by rank."""
    for line in sys.stdin:
        word: Word = json.loads(line)
        # What torchrun keeps for its processes, whatever becomes of them.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        pids = []
        for rank in range(word["ranks"]):
            pid = os.fork()
            if pid == 0:
                os._exit(one(word, rank, store.port))
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        del store
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
