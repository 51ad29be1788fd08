"""The command line: one small dataclass per verb, which calls one job and shows its result.

What a verb takes from `jobs` and `show` is loaded when it is called: `hwnas --help` answers without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg, subcommand

from hwnas import jobs, show
from hwnas.ending import ended
from hwnas.errors import HwnasError
from hwnas.files import canonical_json
from hwnas.verbs.data import Data
from hwnas.verbs.options import (
    DataFolder,
    Device,
    Foreign,
    Measure,
    Moved,
    Processes,
    RecipeName,
    RunName,
    Set,
    Storage,
    TableFile,
    Tables,
    TrialCount,
    Workers,
)
from hwnas.verbs.processes import named, prints, together
from hwnas.verbs.tables import Table


@dataclass(frozen=True)
class Doctor:
    """Say what this machine can measure, and what to install for the rest.

    Example: hwnas doctor
    """

    def __call__(self) -> int:
        """Run the verb."""
        from hwnas import doctor

        doctor.show()
        return 0


@dataclass(frozen=True)
class Ls:
    """List recipes, runs with their tables, and published networks.

    Example: hwnas ls
    """

    def __call__(self) -> int:
        """Run the verb."""
        show.listed(jobs.list_all())
        return 0


@dataclass(frozen=True)
class Profile:
    """Measure a latency table: every op of a recipe, and whole networks to correct their sum.

    Example: hwnas profile darts-quick

    For another box: hwnas profile darts-quick --plan-only plan, copy the folder there, run
    python -m hwnas.runtime measure plan, copy plan/results.jsonl back, then
    hwnas profile darts-quick --results results.jsonl
    """

    recipe: RecipeName
    run: RunName = None
    data: DataFolder = None
    set: Set = ()
    engine: Annotated[
        str | None,
        arg(help="a name that hwnas doctor lists, or module:class (default: the run's, else onnxruntime)"),
    ] = None
    precision: Annotated[
        str | None, arg(help="fp32, tf32 or fp16, as the engine can (default: the run's, else fp32)")
    ] = None
    threads: Annotated[int | None, arg(help="threads of the engine (default: the run's, else 1)")] = None
    plan_only: Annotated[Path | None, arg(metavar="DIR", help="write what to measure into DIR and stop")] = None
    results: Annotated[Path | None, arg(metavar="FILE", help="build the table from results measured elsewhere")] = None
    minutes: Annotated[float | None, arg(help="bound on the time of all of it; what matters most comes first")] = None
    require_mape: Annotated[
        float | None, arg(metavar="PERCENT", help="exit with code 1 if the table's error is more than this")
    ] = None

    def __call__(self) -> int:
        """Run the verb."""
        if self.minutes is not None and not self.minutes > 0:
            raise HwnasError(f"--minutes must be positive, got {self.minutes:g}")
        if self.require_mape is not None and not self.require_mape >= 0:
            raise HwnasError(f"--require-mape must be a percentage of 0 or more, got {self.require_mape:g}")
        if self.plan_only is not None:
            from hwnas.recipes.from_file import load
            from hwnas.recipes.override import assignments, override

            settings = jobs.PlanSettings(self.engine, self.precision)
            recipe, given = load(self.recipe), assignments(self.set)
            if self.data is not None:
                given = jobs.classes_of(recipe, _place(self.data)) | given
            recipe = override(recipe, given)
            plan = jobs.plan(recipe, self.plan_only, settings, show.TERMINAL)
            show.planned(plan, self.plan_only)
            return 0
        run = _begin(self.recipe, self.run, self.data, self.set)
        if self.data is not None:
            run.data("train")  # a folder that cannot be used is refused before anything is measured
        how = jobs.ProfileSettings(self.engine, self.threads, self.precision, self.results, self.minutes)
        result = jobs.profile(run, how, show.TERMINAL)
        show.profiled(result, run.command("search"))
        return 0 if self.require_mape is None or show.within(result.table, self.require_mape) else 1


@dataclass(frozen=True)
class Search:
    """Search for a network under a budget of frames per second, and derive it.

    Example: hwnas search darts-quick --fps 200

    Example: hwnas search darts-quick --table a.json --fps 60 --table b.json --fps 30

    Example: hwnas search darts-quick --run longer --set search.steps=600 --set search.relaxation=single-path

    Example: hwnas search my_recipes.py:darts_longer --fps 100

    Example: hwnas search trials-tiny --processes 4 --trials 200
    """

    recipe: RecipeName
    run: RunName = None
    data: DataFolder = None
    set: Set = ()
    fps: Annotated[
        tuple[float, ...],
        UseAppendAction,
        arg(
            metavar="FPS",
            help="budget (default: the recipe's percentile of random networks); with several --table one for each",
        ),
    ] = ()
    table: Tables = ()
    foreign_table: Foreign = False
    seed: Annotated[int | None, arg(help="of everything random (default: the recipe's)")] = None
    measure: Measure = False
    device: Device = "auto"
    workers: Workers = None
    trials: TrialCount = None
    storage: Storage = None
    processes: Processes = 1

    def __call__(self) -> int:
        """Run the verb."""
        run = _begin(self.recipe, self.run, self.data, self.set, self.seed)
        settings = jobs.SearchSettings(
            self.table,
            self.fps,
            self.foreign_table,
            self.measure,
            self.device,
            self.workers,
            self.trials,
            self.storage,
            self.processes,
        )
        with show.landing():
            show.searched(jobs.search(run, settings, show.TERMINAL))
        return 0


@dataclass(frozen=True)
class Derive:
    """Derive another network from a finished search: another budget, another device's table.

    Example: hwnas derive darts-quick --fps 300

    Example: hwnas derive darts-quick --table a.json --fps 60 --table b.json --fps 30

    Example: hwnas derive darts-quick --pareto 12
    """

    source: Annotated[Positional[str], arg(metavar="RUN", help="a run that was searched")]
    data: Moved = None
    to: Annotated[str | None, arg(metavar="NAME", help="the run that gets the network (default: RUN-<fps>fps)")] = None
    fps: Annotated[
        tuple[float, ...],
        UseAppendAction,
        arg(metavar="FPS", help="budget (default: that of the search); with several --table one for each"),
    ] = ()
    table: Tables = ()
    foreign_table: Foreign = False
    candidates: Annotated[
        int | None, arg(metavar="K", help="how many to list of each width and depth (default: 1, with --rerank 4)")
    ] = None
    rerank: Annotated[
        Literal["supernet", "train"] | None,
        arg(help="let the weights of the search, or short trainings, choose among the candidates"),
    ] = None
    rerank_steps: Annotated[int | None, arg(help="steps of each short training (default: the recipe's)")] = None
    max_skips: Annotated[int | None, arg(metavar="M", help="skip_connect in each cell of stride 1, at most")] = None
    max_macs: Annotated[float | None, arg(help="multiply-adds, at most")] = None
    max_params: Annotated[float | None, arg(help="parameters, at most")] = None
    measure: Measure = False
    pareto: Annotated[
        int | None, arg(metavar="N", help="derive at N budgets from the fastest on, and list what is best at each")
    ] = None
    device: Device = "auto"
    workers: Workers = None

    def __call__(self) -> int:
        """Run the verb."""
        demands = jobs.Demands(
            self.candidates,
            self.rerank,
            self.rerank_steps,
            self.max_skips,
            self.max_macs,
            self.max_params,
            self.measure,
        )
        if self.pareto is None:
            settings = jobs.DeriveSettings(
                self.to, self.table, self.fps, self.foreign_table, demands, self.device, self.workers
            )
            with show.landing():
                show.derived(jobs.derive(_open(self.source, self.data), settings, show.TERMINAL))
            return 0
        if self.to is not None or self.fps or len(self.table) > 1:
            raise HwnasError("--pareto takes its budgets from one table: leave out --to, --fps and a second --table")
        of = jobs.FrontSettings(self.pareto, self.table[0] if self.table else None, self.foreign_table, demands)
        show.front(jobs.front(_open(self.source, self.data), of, show.TERMINAL), self.source)
        return 0


@dataclass(frozen=True)
class Train:
    """Train the derived network of a run; the best weights on val are kept.

    Example: hwnas train darts-quick

    Example: hwnas train darts-quick --steps 2000

    Example: hwnas train darts-quick --set train.loss=ohem --set train.average=0.999
    """

    run: Annotated[Positional[str], arg(metavar="RUN", help="a run with a derived network")]
    data: Moved = None
    steps: Annotated[
        int | None,
        arg(metavar="N", help="steps in the end: a finished training goes on to them (default: the recipe's)"),
    ] = None
    set: Annotated[
        tuple[str, ...],
        UseAppendAction,
        arg(metavar="NAME=VALUE", help="a setting of the training before it begins, e.g. train.lr=0.01"),
    ] = ()
    weights: Annotated[
        Path | None, arg(metavar="FILE", help="start from these weights of the same network, not at random")
    ] = None
    tensorboard: Annotated[bool, arg(help="write the log for TensorBoard too, into runs/RUN/tb")] = False
    device: Device = "auto"
    workers: Workers = None

    def __call__(self) -> int:
        """Run the verb."""
        from hwnas.recipes.override import assignments

        run = _open(self.run, self.data)
        settings = jobs.TrainSettings(
            self.device, self.workers, self.steps, self.weights, self.tensorboard, assignments(self.set)
        )
        show.trained(jobs.train(run, settings, show.TERMINAL), run.command("export"))
        return 0


@dataclass(frozen=True)
class Export:
    """Export the trained network to a folder to deploy: ONNX (opset 17), compared with the network it came from.

    Example: hwnas export darts-quick

    To run it on a picture: python -m hwnas.runtime run runs/darts-quick/deploy street.jpg
    """

    run: Annotated[Positional[str], arg(metavar="RUN", help="a run with a trained network")]
    data: Moved = None
    logits: Annotated[bool, arg(help="end in class scores instead of labels")] = False
    scores: Annotated[bool, arg(help="end in class scores before they are upsampled")] = False
    engine: Annotated[
        str | None, arg(help="what it is to run on, see hwnas doctor (default: that of the run's table)")
    ] = None
    precision: Annotated[
        str | None, arg(help="fp32, tf32 or fp16, as the engine can (default: the table's if its engine is, else fp32)")
    ] = None
    compatible: Annotated[
        str | None,
        arg(
            help="let an engine that is built serve later releases too (version), or other GPUs (ampere_plus, "
            "same_compute_capability); it may be slower"
        ),
    ] = None

    def __call__(self) -> int:
        """Run the verb."""
        if self.logits and self.scores:
            raise HwnasError("--logits and --scores are two endings of one file; give one of them")
        run = _open(self.run, self.data)
        kind: Literal["labels", "logits", "scores"] = "logits" if self.logits else "scores" if self.scores else "labels"
        settings = jobs.ExportSettings(kind, self.engine, self.precision, self.compatible)
        show.exported(jobs.export(run, settings, show.TERMINAL), run.command("validate"))
        return 0


@dataclass(frozen=True)
class Validate:
    """Measure latency, fps and mIoU of the exported file, and hold them against prediction, budget and network.

    Example: hwnas validate darts-quick

    Example: hwnas validate darts-quick --scales 0.75,1,1.25 --flip

    The network in PyTorch is evaluated so beside the file; what is timed is the plain network.
    """

    run: Annotated[Positional[str], arg(metavar="RUN", help="a run with an exported network")]
    data: Moved = None
    table: TableFile = None
    foreign_table: Foreign = False
    again: Annotated[bool, arg(help="measure anew although there is a report; the old one is kept")] = False
    require_budget: Annotated[bool, arg(help="exit with code 1 if the budget is missed")] = False
    device: Device = "auto"
    scales: Annotated[
        str, arg(metavar="S,S,...", help="evaluate in PyTorch at these scales of the image too, scores averaged")
    ] = "1"
    flip: Annotated[bool, arg(help="evaluate in PyTorch with the mirrored image too, scores averaged")] = False
    window: Annotated[
        str | None,
        arg(metavar="HxW", help="evaluate in PyTorch by windows of this size, which overlap by a third"),
    ] = None

    def __call__(self) -> int:
        """Run the verb."""
        inference = jobs.Inference.of(self.scales, self.flip, self.window)
        settings = jobs.ValidateSettings(self.table, self.foreign_table, self.again, self.device, inference)
        result = jobs.validate(_open(self.run, self.data), settings, show.TERMINAL)
        show.validated(result)
        result.require_accepted()
        return 1 if self.require_budget and not result.report.met else 0


@dataclass(frozen=True)
class Price:
    """Say what a network takes by a table, op by op, and whether another one is faster.

    Example: hwnas price darts-quick --compare DARTS_V2
    """

    network: Annotated[
        Positional[str],
        arg(metavar="NETWORK", help="a run, a file like its arch.json, or a published network: hwnas ls"),
    ]
    table: Annotated[
        str | None, arg(metavar="TABLE", help="a file, a run, or a table that ships with hwnas (default: the run's)")
    ] = None
    foreign_table: Foreign = False
    recipe: Annotated[
        str | None,
        arg(
            metavar="RECIPE",
            help="of a network that does not say its own; size and classes of a published one that is not searched",
        ),
    ] = None
    channels: Annotated[int | None, arg(help="width (default: the network's own, else the recipe's)")] = None
    compare: Annotated[str | None, arg(metavar="OTHER", help="another network, priced by the same table")] = None
    all: Annotated[bool, arg(help="every op, not only a summary by kind")] = False
    json: Annotated[bool, arg(help="end with one line of JSON")] = False

    def __call__(self) -> int:
        """Run the verb."""
        settings = jobs.PriceSettings(
            self.network, self.table, self.foreign_table, self.recipe, self.channels, self.compare
        )
        result = jobs.price(settings)
        show.priced(result, self.all)
        if self.json:
            print(canonical_json(result.to_json()))
        return 0


VERBS = {
    "doctor": Doctor,
    "ls": Ls,
    "data": Data,
    "profile": Profile,
    "search": Search,
    "derive": Derive,
    "train": Train,
    "export": Export,
    "validate": Validate,
    "table": Table,
    "price": Price,
}


def _begin(
    recipe: str, name: str | None, data: Path | None, settings: Sequence[str], seed: int | None = None
) -> jobs.Run:
    """Return the run a verb works on, with what was asked for; nothing is written yet."""
    from hwnas.recipes.from_file import name_of
    from hwnas.recipes.override import assignments

    run = jobs.Run(name or name_of(recipe))
    run.ask(recipe, assignments(settings), data=None if data is None else _place(data), seed=seed)
    if data is not None:
        run.adopt_classes()
    show.recipe_changes(run)
    return run


def _open(name: str, data: Path | None) -> jobs.Run:
    """Return a run that is there; `data` is where its data lie now, if they have moved."""
    run = jobs.Run(name)
    if data is not None:
        run.ask(data=_place(data))
    show.recipe_changes(run)
    return run


def _place(data: Path) -> str:
    """Return what a run calls its data: an absolute path, or the name of a dataset that is drawn."""
    from hwnas.data.identity import is_drawn

    return str(data) if is_drawn(str(data)) else str(data.resolve())


def at_home(value: Any) -> Any:
    """Return a parsed verb whose paths begin with a folder where they were written with ``~``.

    The shell does that for words that begin so, and not for ``--data=~/streets``.

    Raises:
        HwnasError: If there is no such user.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: at_home(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, tuple):
        return tuple(map(at_home, value))
    if not isinstance(value, str | Path) or not str(value).startswith("~"):
        return value
    try:
        return type(value)(Path(value).expanduser())
    except RuntimeError as e:
        raise HwnasError(
            f"{value} is in the home of a user whom this machine does not know; write the whole path"
        ) from e


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; under torchrun, that of one of several processes.

    Returns:
        0; 1 if a required budget was missed or a table does not hold; 2 for what can be mended, a mistake or what the
        system refuses; 130 if interrupted; 141 if nobody reads what is printed.
    """
    return ended(lambda: _run(_parsed(argv)), named("hwnas"))


def _run(verb: Callable[[], int]) -> int:
    with together(isinstance(verb, Train | Search)):
        return int(verb())


def _parsed(argv: Sequence[str] | None) -> Callable[[], int]:
    """Return the verb that a command line asks for."""
    verb: Callable[[], int] = tyro.cli(  # type: ignore[call-overload]  # the union is made at run time
        Union[tuple(Annotated[v, subcommand(name)] for name, v in VERBS.items())],  # noqa: UP007 - made at run time
        prog="hwnas",
        description="Hardware-aware architecture search for real-time segmentation. Each verb reads and writes plain "
        "files under runs/NAME/ and goes on where it stopped. In order: profile, search, train, export, validate.",
        args=argv,
        config=(OmitArgPrefixes, FlagCreatePairsOff),
        console_outputs=prints(),
    )
    whole: Callable[[], int] = at_home(verb)
    return whole
