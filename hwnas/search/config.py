"""The strategy of gradient descent: its settings, as data that recipes hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hwnas.errors import HwnasError, check_ranges, not_below, positive, seeds
from hwnas.latency.resources import RESOURCES
from hwnas.ops.fused import native
from hwnas.progress import Reporter
from hwnas.records import stored
from hwnas.search.bilevel import Order
from hwnas.search.costs import CostConfig
from hwnas.search.guards import Guards
from hwnas.search.logits import LogitModel, Table
from hwnas.search.relax import Relaxation, Softmax
from hwnas.search.strategy import Inputs, Strategy
from hwnas.spaces import Scale
from hwnas.spaces.cell import Evaluation

if TYPE_CHECKING:
    from hwnas.search.gradient import BilevelSearch
    from hwnas.search.rerank import Supernet


@stored("gradient")
@dataclass(frozen=True)
class SearchConfig(Strategy):
    """Settings of a gradient search; defaults are those of DARTS (section 3.1 and its code), steps are the recipe's.

    Attributes:
        scale: Of the supernet: the proxy the search runs at.
        steps: Weight steps in all.
        warmup: First steps in which alphas stay where they are.
        batch: Images that pass the network at once, for weights and for alphas each.
        crop: (height, width) of training crops.
        w_lr: Learning rate of weights at the start; cosine to `w_lr_end`.
        w_lr_end: At the end.
        w_momentum: Of SGD.
        w_decay: Weight decay of weights.
        w_clip: Gradient norm of weights is clipped to this.
        alpha_lr: Learning rate of alphas (Adam, betas 0.5 and 0.999).
        alpha_decay: Weight decay of alphas.
        level: ``"bilevel"``: alphas learn on a half of the training set that weights never see (DARTS). ``"single"``:
            both from one loss on one batch of the whole set (SNAS, GAS).
        order: Of the gradient of alphas, see `hwnas.search.bilevel.alpha_gradient`.
        logits: What the logits of the decisions come from.
        relaxation: How discrete decisions are relaxed in the supernet.
        cost: How resources count in the loss of the alphas.
        guards: Against known ways in which such searches fail.
        cutout: Side of the square cut out of images that are classified, in pixels.
        accumulate: Batches a step, for weights and for alphas each; their gradients are averaged. Equal to one batch
            of all their images, but for BatchNorm, which sees `batch` at once.
        evaluation: How the supernet's cells are computed, see `hwnas.spaces.cell.set_evaluation`.
        precision: ``"bf16"`` computes what can be in bfloat16 (autocast); weights stay float32.
        checkpoint_every: Steps between checkpoints at most; they are more frequent where they cost little time.
        seed: Of everything random.
    """

    shareable: ClassVar[bool] = True

    scale: Scale
    steps: int
    warmup: int
    batch: int
    crop: tuple[int, int]
    w_lr: float = 0.025
    w_lr_end: float = 0.001
    w_momentum: float = 0.9
    w_decay: float = 3e-4
    w_clip: float = 5.0
    alpha_lr: float = 3e-4
    alpha_decay: float = 1e-3
    level: Literal["bilevel", "single"] = "bilevel"
    order: Order = "first"
    logits: LogitModel = field(default_factory=Table)
    relaxation: Relaxation = field(default_factory=Softmax)
    cost: CostConfig = field(default_factory=CostConfig)
    guards: Guards = field(default_factory=Guards)
    cutout: int = 0
    accumulate: int = 1
    evaluation: Evaluation = "fast"
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = 10
    seed: int = 2

    def __post_init__(self) -> None:
        if self.level == "single" and self.order != "first":
            raise HwnasError(f"a single-level search has no order {self.order!r}: it unrolls no step; use 'first'")
        if self.order == "second-exact" and self.evaluation != "plain":
            raise HwnasError(f"second-exact differentiates twice, which {self.evaluation!r} cannot: use 'plain'")
        counts = ("steps", "batch", "accumulate", "checkpoint_every")
        rates = ("w_lr", "w_clip", "alpha_lr")
        least = ("w_lr_end", "w_decay", "alpha_decay", "cutout")
        check_ranges(
            "a search",
            *not_below(self, counts, 1),
            *positive(self, rates),
            *not_below(self, least, 0),
            *seeds(self, ("seed",)),
            ("a warmup from 0 to its steps", self.warmup, 0 <= self.warmup <= self.steps),
            ("a w_momentum from 0 to less than 1", self.w_momentum, 0 <= self.w_momentum < 1),
            ("a crop (height, width) of 1 or more", self.crop, len(self.crop) == 2 and min(self.crop) >= 1),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images: that of the supernet's scale."""
        return self.scale.size

    @property
    def resources(self) -> tuple[str, ...]:
        """The counts that its cost weighs."""
        return tuple(r for r in self.cost.resources or () if r in RESOURCES)

    def begin(self, inputs: Inputs) -> BilevelSearch:
        """Build the supernet and start at its first step."""
        from hwnas.search.gradient import BilevelSearch

        i = inputs
        return BilevelSearch(
            i.space, self, i.data, i.bounds, i.fixed, i.open_groups, i.weights, i.device, i.workers, i.world
        )

    def prepare(self, inputs: Inputs, fresh: bool, report: Reporter) -> None:
        """Compile the supernet's kernels, and before the first step report how much memory the search will take."""
        from hwnas.search.memory import report_memory

        on_host = inputs.device.type == "cpu"
        if on_host and self.evaluation != "plain":
            native.prepare(report)
        if on_host and fresh:
            report_memory(self, inputs, report)

    def note(self, metrics: Mapping[str, Any]) -> str:
        """Return loss, entropy, weight of the cost, and what the network derived now takes."""
        out = [f"loss {metrics['train_loss']:.3f}", f"entropy {metrics['entropy']:.3f}"]
        out += [f"{k} {v:.4g}" for k, v in metrics.items() if k == "lambda" or k.startswith("derived_")]
        return " ".join(out)

    def supernet(self, inputs: Inputs, state: Mapping[str, Any]) -> Supernet:
        """Return the trained supernet, from the state of a search.

        Raises:
            HwnasError: If its weights have learned on all images.
        """
        from hwnas.search.rerank import Supernet

        return Supernet(inputs.space, self, state["net"], inputs.data, inputs.fixed, inputs.device)
