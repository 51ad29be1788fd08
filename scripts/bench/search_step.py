"""How long a search step takes, and how much memory, beside the same step written as a textbook does.

Both do one step of the alphas and one of the weights on the same supernet with batches of the same size: ours by
`hwnas.search.gradient.BilevelSearch` as it is used, the other by `scripts/bench/textbook.py` and `textbook_trellis.py`.
Steps are interleaved; time is the CPU time of the process with one thread, and the figure is the median of the ratios
of rounds. Memory is that of a process of its own: its highest level during a step less the level before. Prints a table
and, as its last line, one JSON object.

example: python scripts/bench/search_step.py --cases darts-b4 --orders 1 --rounds 3
example: python scripts/bench/search_step.py --space gas --modes textbook fast lean
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from textbook import JointSearch, Search, Supernet
from textbook_trellis import TrellisSupernet
from torch import nn

from hwnas import recipes
from hwnas.data import open_dataset
from hwnas.latency import LatencyTable
from hwnas.learn.losses import task_loss
from hwnas.resources import profiles_dir
from hwnas.search.costs import Bound, CostConfig
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.graph_logits import GraphLogits
from hwnas.search.memory import held_bytes, peak_bytes, release, reset_peak
from hwnas.search.relax import GumbelSoftmax, open_logits, softmax
from hwnas.search.widths import count, price
from hwnas.show.console import console, table
from hwnas.spaces import Scale, Space, Trellis, autodeeplab_space, cas_space, darts_space, gas_space
from hwnas.spaces.cell import set_evaluation

MODES = ("textbook", "fast", "lean", "fast-bf16")
# What a step asks for in units of a forward pass: forward, gradients of maps and gradients of weights are one each. The
# alphas need no gradients of weights; the textbook takes them all the same. One pass is for both on a single level.
PASSES = {1: 5, 2: 14}
SINGLE_PASSES = 3


@dataclass(frozen=True)
class Case:
    """A supernet, a batch, and what is not as in a search of DARTS."""

    space: Space
    batch: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def batches(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Return a batch for weights and one for alphas; what is in them does not matter for time."""
        rng, size = np.random.default_rng(0), self.space.scale.size
        shape = (self.batch, *(size if self.space.task == "segmentation" else ()))
        return tuple(
            (
                rng.standard_normal((self.batch, 3, *size), dtype=np.float32),
                rng.integers(self.space.classes, size=shape),
            )
            for _ in range(2)
        )


# As the recipes of these systems have it.
CAS: dict[str, Any] = {"cost": CostConfig("linear", weight=0.1, expectation="mixture")}
GAS: dict[str, Any] = {
    "level": "single",
    "logits": GraphLogits(),
    "relaxation": GumbelSoftmax(),
    "cost": CostConfig("log", weight=0.1, expectation="mixture"),
}
CIFAR = darts_space(Scale(16, 8, (32, 32)), 10, stem="cifar", head="classification")
CASES = {
    "darts-b4": Case(CIFAR, 4),
    "darts-b16": Case(CIFAR, 16),
    "segmentation-192x384-b2": Case(darts_space(Scale(16, 8, (192, 384)), 11), 2),
    "autodeeplab-64": Case(autodeeplab_space(Scale(8, 12, (64, 64)), 19), 1),
    "autodeeplab-128": Case(autodeeplab_space(Scale(8, 12, (128, 128)), 19), 1),
    "cas-128": Case(cas_space(Scale(16, 6, (128, 128)), 11), 2, CAS),
    "cas-192x384": Case(cas_space(Scale(16, 6, (192, 384)), 11), 2, CAS),
    "gas-128": Case(gas_space(Scale(16, 14, (128, 128)), 11), 2, GAS),
    "gas-192x384": Case(gas_space(Scale(16, 14, (192, 384)), 11), 2, GAS),
    "tiny": Case(darts_space(Scale(4, 3, (16, 16)), 10, stem="cifar", head="classification"), 2),
    "tiny-trellis": Case(autodeeplab_space(Scale(2, 4, (32, 32)), 5, nodes=2), 2),
    "tiny-cas": Case(cas_space(Scale(4, 3, (64, 64)), 5, nodes=2, head_channels=4, head_nodes=2), 2, CAS),
    "tiny-gas": Case(gas_space(Scale(4, 3, (64, 64)), 5, head_channels=4), 2, GAS),
}
USUAL = {
    "darts": ("darts-b4", "darts-b16", "segmentation-192x384-b2"),
    "autodeeplab": ("autodeeplab-64", "autodeeplab-128"),
    "cas": ("cas-128", "cas-192x384"),
    "gas": ("gas-128", "gas-192x384"),
}


def bounds(case: Case) -> list[Bound]:
    """Return a budget as a search has it: a latency table of the recipe darts-quick, at its widest scale.

    There is no table for other spaces: they count multiply-adds, by a model with as many prices.
    """
    recipe = recipes.get("darts-quick")
    if case.space.groups != recipe.space.groups:
        (model,) = count(case.space, [case.space.scale], "macs")
        return [Bound("macs", model, 1e6)]
    latency = LatencyTable.load(sorted(profiles_dir().glob("*/onnxruntime-fp32-b1/darts-quick.json"))[0])
    (model,) = price(recipe.space, recipe.scales()[-1:], latency)
    return [Bound("ms", model, 3.0)]


def ours(case: Case, order: int, mode: str, bound: bool = True) -> Callable[[], Any]:
    """Return a step of our search."""
    weights, alphas = case.batches()
    scale = case.space.scale
    config = SearchConfig(scale, steps=10**6, warmup=0, batch=case.batch, crop=scale.size, seed=0)
    precision = "bf16" if mode.endswith("bf16") else "fp32"
    config = replace(
        config,
        order="second" if order == 2 else "first",
        evaluation=mode.removesuffix("-bf16"),  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        **case.settings,
    )
    kind = "synthetic-shapes" if case.space.task == "classification" else "synthetic"
    search = BilevelSearch(case.space, config, open_dataset(kind, "train", scale.size), bounds(case) if bound else ())
    search.weight_batches = lambda step: weights  # type: ignore[assignment, misc]
    search.alpha_batches = lambda step: alphas  # type: ignore[assignment, misc]
    return search.advance


def book_of(case: Case, net: nn.Module, alphas: dict[str, torch.Tensor]) -> Supernet | TrellisSupernet:
    """Return the textbook's form of a supernet, with the same weights."""
    if isinstance(case.space.encoder, Trellis):
        return TrellisSupernet(net, case.space, alphas)
    return Supernet(net, case.space, alphas)


def textbooks(case: Case, order: int) -> Callable[[], Any]:
    """Return a step of the textbook's search."""
    torch.manual_seed(0)
    net = case.space.build(form="search")
    alphas = {g.name: 1e-3 * torch.randn(g.shape) for g in case.space.groups}
    book = book_of(case, net, alphas)
    train, val = ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in case.batches())
    if case.settings.get("level") == "single":
        assert isinstance(book, Supernet)
        relaxation, logits = case.settings["relaxation"], case.settings["logits"].build(case.space.groups, 0)
        joint = JointSearch(book, logits, task_loss, relaxation.temperature.start)
        return lambda: joint.step(train)
    search = Search(book, task_loss, order == 2)
    return lambda: search.step(train, val)


def step_of(case: Case, order: int, mode: str) -> Callable[[], Any]:
    """Return a step in any mode."""
    return textbooks(case, order) if mode == "textbook" else ours(case, order, mode)


def seconds(step: Callable[[], Any]) -> float:
    """Return the CPU time of a step."""
    start = time.process_time()
    step()
    return time.process_time() - start


def rise_bytes(case: Case, order: int, mode: str) -> int:
    """Return how far the memory of this process rises in a step, over the level before it."""
    step = step_of(case, order, mode)
    step()  # makes what stays: momenta, compiled kernels
    release()
    assert reset_peak(), "Linux only"
    before = held_bytes()
    step()
    return peak_bytes() - before


def matrix_rate() -> float:
    """Return the multiply-adds a second of a large matrix product in float32, with one thread."""
    a = torch.randn(1536, 1536)
    best = min(seconds(lambda: a @ a) for _ in range(5))
    return 1536**3 / best


def forward_macs(case: Case) -> int:
    """Return the multiply-adds of a forward pass of the supernet: convolutions and linear layers."""
    net = case.space.build(form="search")
    set_evaluation(net, "plain")
    total = 0

    def count(module: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        total += weight.numel() * out.shape[0] * (out[0, 0].numel() if isinstance(module, nn.Conv2d) else 1)

    for m in net.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            m.register_forward_hook(count)
    probs = {g.name: torch.full(g.shape, 1 / g.shape[1]) for g in case.space.groups}
    with torch.no_grad():
        net(torch.from_numpy(case.batches()[0][0]), probs)
    return total


def equality(case: Case) -> dict[str, float]:
    """Hold outputs and gradients of alphas of one pass against the textbook's.

    In float64 the two are compared as they are. In float32 both are compared with float64: at kinks of ReLU and max
    pooling gradients in float32 differ from the true ones by more than rounding, the textbook's too.
    """
    torch.manual_seed(0)
    net = case.space.build(form="search")
    alphas = {g.name: 1e-3 * torch.randn(g.shape) for g in case.space.groups}
    book = book_of(case, net, alphas)
    x, y = (torch.from_numpy(a) for a in case.batches()[0])

    def slopes(fused: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        if not fused:
            made = book.to(dtype)
            scores = made(x.to(dtype))
            return [scores, *torch.autograd.grad(task_loss(scores, y), [made.alphas[k] for k in alphas])]
        set_evaluation(net.to(dtype, memory_format=torch.channels_last), "fast")
        logits = {k: v.to(dtype).requires_grad_() for k, v in alphas.items()}
        scores = net.to(dtype)(x.to(dtype), softmax(open_logits(logits, case.space.groups)))
        return [scores, *torch.autograd.grad(task_loss(scores, y), list(logits.values()))]

    def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> tuple[float, float]:
        far = [
            float((p.double() - q.double()).norm() / q.double().norm())
            for p, q in zip((t.detach() for t in a), (t.detach() for t in b), strict=True)
        ]
        return far[0], max(far[1:])

    low = slopes(True, torch.float32), slopes(False, torch.float32)
    high = slopes(True, torch.float64), slopes(False, torch.float64)
    names = ("scores", "alpha_gradients")
    out = dict(zip((f"fp64_{n}" for n in names), apart(*high), strict=True))
    out |= dict(zip((f"fp32_{n}_ours_to_fp64" for n in names), apart(low[0], high[1]), strict=True))
    return out | dict(zip((f"fp32_{n}_textbook_to_fp64" for n in names), apart(low[1], high[1]), strict=True))


def term_share(case: Case) -> float:
    """Return what the latency term adds to a step: its own time over that of a step."""
    search = ours(case, 1, "fast").__self__  # type: ignore[attr-defined]
    step = statistics.median(seconds(search.advance) for _ in range(3))
    assert search.cost is not None

    def term() -> None:
        value = torch.tensor(1.0, requires_grad=True)
        logits = search.logits()
        total = search.cost.total(value, search.config.relaxation.probs(logits), search.weight)
        torch.autograd.grad(total, list(logits.values()))

    term()
    return statistics.median(seconds(term) for _ in range(20)) / step


def measure(name: str, order: int, rounds: int, modes: list[str], rate: float) -> list[dict[str, Any]]:
    """Measure a case: interleaved rounds in this process, memory in one process for each mode."""
    case = CASES[name]
    steps = {mode: step_of(case, order, mode) for mode in modes}
    for step in steps.values():
        step()
    times = [{mode: seconds(step) for mode, step in steps.items()} for _ in range(rounds)]
    del steps
    memory = {mode: _peak_apart(name, order, mode) for mode in modes}
    macs = forward_macs(case)
    passes = SINGLE_PASSES if case.settings.get("level") == "single" else PASSES[order]
    out = []
    for mode in modes:
        own = statistics.median(t[mode] for t in times)
        out.append(
            {
                "case": name,
                "order": order,
                "mode": mode,
                "seconds": own,
                "time_ratio": statistics.median(t["textbook"] / t[mode] for t in times),
                "memory_mib": memory[mode] / 2**20,
                "memory_ratio": memory[mode] / memory["textbook"],
                "share_of_peak": passes * macs / own / rate,
            }
        )
    return out


def _peak_apart(name: str, order: int, mode: str) -> int:
    command = [sys.executable, __file__, "--peak", name, str(order), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=list(USUAL), default="darts", help="whose cases, and in first order or both")
    parser.add_argument("--cases", nargs="+", choices=list(CASES))
    parser.add_argument("--orders", nargs="+", type=int, choices=(1, 2))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--peak", nargs=3, metavar=("CASE", "ORDER", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.cases = args.cases or USUAL[args.space]
    args.orders = args.orders or ([1, 2] if args.space == "darts" else [1])  # the others search in first order
    torch.set_num_threads(1)
    if args.peak:
        name, order, mode = args.peak
        print(rise_bytes(CASES[name], int(order), mode))
        return
    modes = ["textbook", *(m for m in args.modes if m != "textbook")]
    rate = matrix_rate()
    cases: list[dict[str, Any]] = []
    for name in args.cases:
        for order in args.orders:
            cases += measure(name, order, args.rounds, modes, rate)
            console.print(f"{name}, order {order}: done")
    rows = [
        [
            *(c["case"], str(c["order"]), c["mode"], f"{c['seconds']:.3f}", f"{c['time_ratio']:.2f}"),
            *(f"{c['memory_mib']:.0f}", f"{c['memory_ratio']:.2f}", f"{c['share_of_peak']:.1%}"),
        ]
        for c in cases
    ]
    heads = ("case", "order", "mode", "CPU s", "faster", "MiB", "of its memory", "of the matrix rate")
    table("a search step beside the textbook's", heads, rows, numbers=True)
    same = equality(CASES[args.cases[0]])
    share = term_share(CASES[args.cases[0]])
    console.print(f"matrix product, float32: {2 * rate / 1e9:.0f} GFLOP/s; latency term: {share:.2%} of a step")
    console.print(", ".join(f"{k} {v:.1e}" for k, v in same.items()))
    known = {"matrix_gflops": 2 * rate / 1e9, "latency_term_share": share, "equality": same}
    print(json.dumps({"cases": cases, **known}))


if __name__ == "__main__":
    main()
