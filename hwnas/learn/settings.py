"""The settings of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hwnas.data.augment import Augmentation
from hwnas.errors import HwnasError, check_ranges, not_below, positive, seeds
from hwnas.learn.device import Precision

Optimizer = Literal["adamw", "sgd"]
ScheduleName = Literal["cosine", "poly", "constant"]
Loss = Literal["ce", "ohem", "focal"]
Weighting = Literal["enet", "balanced", "none"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; with ``optimizer="sgd"`` those of DARTS (appendix A.2) but for what is 0 by default.

    Attributes:
        steps: Weight steps.
        batch: Images a step, times `accumulate`.
        crop: (height, width) of training crops.
        lr: Peak learning rate; see `schedule`.
        decay: Weight decay; of AdamW none on BatchNorm and biases, of SGD on everything.
        evaluate_every: Steps between evaluations on val; the best one's weights are kept.
        seed: Of weights, order, augmentation and drop path.
        optimizer: ``"adamw"``, or ``"sgd"`` with `momentum`.
        accumulate: Batches whose gradients are averaged in one step.
        aux_weight: What the loss of an auxiliary head counts, 0 for none; see `Space.build_auxiliary`.
        drop_path: Probability that an edge is left out, at the end of the training: it grows from 0 linearly.
        cutout: Side of the square cut out of images that are classified, in pixels.
        smoothing: Share of each target that is spread over all classes.
        precision: ``"bf16"`` and ``"fp16"`` compute the network in these where torch's autocast does; weights stay in
            float32. The loss of ``"fp16"`` is scaled, see `hwnas.learn.scaling`.
        checkpoint_every: Steps between checkpoints at most; they are more frequent where they cost little time.
        average: Decay of an exponential average of the weights, which is then what is evaluated and kept; 0 for none.
            It begins lower, see `hwnas.learn.average`.
        schedule: Of the learning rate: ``"cosine"`` or ``"poly"`` to 0, or ``"constant"``.
        power: Of ``"poly"``: ``(1 - step / steps) ** power``.
        warmup: Share of the steps over which the learning rate rises linearly; None for 5 % with AdamW, 0 with SGD.
        momentum: Of SGD.
        clip: Norm to which the gradients of a step are clipped; 0 for no clipping.
        encoder_lr: Factor on the learning rate of the encoder: of all parameters that are not the head's.
        freeze_norm: Leave the BatchNorms of the encoder as they are, statistics and weights: for pretrained ones.
        loss: Cross-entropy of all pixels, of the hard ones (OHEM), or focal; see `hwnas.learn.losses`.
        class_weights: ``"enet"``, ``"balanced"`` (by median frequency) or ``"none"``, where pixels are classified; or
            one weight a class, for any task.
        ohem_threshold: Pixels whose class has less than this probability are hard.
        ohem_kept: Share of the pixels that count at least, the hardest ones.
        focal_gamma: Exponent of the focal loss.
        dice_weight: What a Dice loss counts that is added, 0 for none.
        scale_range: Least and greatest scale of training images.
        flip: Whether training images are mirrored, half the time.
        jitter: Of brightness, contrast and saturation of training images: by a factor within 1 - jitter to 1 + jitter.
        recalibrate: Training batches from which the statistics of BatchNorm are computed anew before each evaluation,
            0 for those of the training.
        distill: A run with a trained network, or an ONNX file, whose scores are learned from beside the labels.
        distill_weight: What that loss counts.
        temperature: Scores are divided by before they are compared with the teacher's.
        channels_last: Keep maps channels last in memory.
        compile: Compile the network by `torch.compile`.
        encoder_weights: What the encoder starts from: ``"imagenet"`` for the weights of a package, or the path of a
            file, see `hwnas.learn.pretrained`; empty for random weights.

    Raises:
        HwnasError: If a setting is out of range.
    """

    steps: int
    batch: int
    crop: tuple[int, int]
    lr: float = 4e-3
    decay: float = 1e-2
    evaluate_every: int = 100
    seed: int = 0
    optimizer: Optimizer = "adamw"
    accumulate: int = 1
    aux_weight: float = 0.0
    drop_path: float = 0.0
    cutout: int = 0
    smoothing: float = 0.0
    precision: Precision = "fp32"
    checkpoint_every: int = 20
    average: float = 0.0
    schedule: ScheduleName = "cosine"
    power: float = 0.9
    warmup: float | None = None
    momentum: float = 0.9
    clip: float = 5.0
    encoder_lr: float = 1.0
    freeze_norm: bool = False
    loss: Loss = "ce"
    class_weights: Weighting | tuple[float, ...] = "enet"
    ohem_threshold: float = 0.7
    ohem_kept: float = 1 / 16
    focal_gamma: float = 2.0
    dice_weight: float = 0.0
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    jitter: float = 0.2
    recalibrate: int = 0
    distill: str | None = None
    distill_weight: float = 1.0
    temperature: float = 2.0
    channels_last: bool = True
    compile: bool = False
    encoder_weights: str = ""

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch, self.accumulate, self.evaluate_every, self.checkpoint_every)
        shares = (self.drop_path, self.smoothing, self.average)
        weights = self.class_weights
        good = {
            "steps, batch, accumulate, evaluate_every and checkpoint_every of 1 or more": min(counts) >= 1,
            "drop_path, smoothing and average from 0 to less than 1": min(shares) >= 0 and max(shares) < 1,
            "an aux_weight of 0 or more": self.aux_weight >= 0,
            **{f"{what} of {', '.join(of)}": getattr(self, name) in of for name, (what, of) in _CHOICES.items()},
            "a class_weights of enet, balanced, none or numbers of 0 or more, not all 0": (
                weights in get_args(Weighting)
                if isinstance(weights, str)
                else min(weights, default=-1) >= 0 and max(weights) > 0
            ),
            "a warmup from 0 to less than 1": self.warmup is None or 0 <= self.warmup < 1,
            "a momentum from 0 to less than 1": 0 <= self.momentum < 1,
            "an ohem_threshold of more than 0 and at most 1": 0 < self.ohem_threshold <= 1,
            "an ohem_kept from 0 to 1": 0 <= self.ohem_kept <= 1,
        }
        check_ranges(
            "a training",
            *positive(self, ("lr", "power", "temperature")),
            *not_below(self, _NOT_NEGATIVE, 0),
            *seeds(self, ("seed",)),
            ("a crop (height, width) of 1 or more", self.crop, len(self.crop) == 2 and min(self.crop) >= 1),
        )
        _ = self.augmentation  # refuses what it cannot be
        wrong = next((what for what, holds in good.items() if not holds), None)
        if wrong is not None:
            raise HwnasError(f"a training needs {wrong}; got {self}")

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training images.

        Raises:
            HwnasError: If that is out of range.
        """
        return Augmentation(self.scale_range, self.flip, self.jitter, self.cutout)

    @staticmethod
    def older(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Bring settings with ``bf16``, true or false, to those with a precision."""
        new = dict(fields)
        bf16 = new.pop("bf16", None)
        return new if bf16 is None else {"precision": "bf16" if bf16 else "fp32", **new}


_CHOICES = {
    "optimizer": ("an optimizer", get_args(Optimizer)),
    "schedule": ("a schedule", get_args(ScheduleName)),
    "loss": ("a loss", get_args(Loss)),
    "precision": ("a precision", get_args(Precision)),
}
_NOT_NEGATIVE = (
    "decay",
    "cutout",
    "clip",
    "encoder_lr",
    "focal_gamma",
    "dice_weight",
    "recalibrate",
    "distill_weight",
)
