"""Heads trained on what a fixed encoder gives, computed once: most of a network's cost is then paid by no trial.

So did Chen et al. 2018 (Searching for Efficient Multi-Scale Architectures, section 3) and Nekrasov et al. 2019 (Fast
Neural Architecture Search of Compact Semantic Segmentation Models, section 3.2), who train the promising ones end to
end as well. The score of the first correlates with that of a whole training, but less so than a short training end to
end (rank correlations of 0.47 and less in the former).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.data.augment import BatchSource, batch_source
from hwnas.data.base import task_of
from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.files import canonical_json, sha256
from hwnas.learn.average import averaged
from hwnas.learn.device import Context, read
from hwnas.learn.losses import criterion, tensors, weights_of
from hwnas.learn.optim import clip, make_optimizer, set_learning_rate
from hwnas.learn.pretrained import start_encoder
from hwnas.learn.schedule import learning_rate
from hwnas.learn.settings import TrainConfig
from hwnas.metrics import ConfusionMatrix
from hwnas.ops.layers import resized
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.records import stored
from hwnas.search.rerank import recalibrate
from hwnas.search.strategy import Inputs
from hwnas.search.study.choices import Tried
from hwnas.search.study.evaluators.base import LEAST, Evaluation, Evaluator, Outcome, Part, Reward, parts, reward
from hwnas.search.study.evaluators.cache import Cache, open_cache
from hwnas.search.study.evaluators.early_stop import EarlyStop
from hwnas.search.study.evaluators.short import ShortTraining, ShortTrainings, check_part, refuse_weights
from hwnas.seeding import seeded
from hwnas.spaces import SpaceNet
from hwnas.spaces.parts import EncoderNet

FIRST = "first"  # of the facts of a trial: its score as a head on features
RECALIBRATION = 8  # batches that an encoder of random weights takes the statistics of its BatchNorms from


@stored("head-on-features")
@dataclass(frozen=True)
class HeadOnFeatures(Evaluator):
    """Trains each head on features of an encoder that decides nothing, or was decided by an earlier stage.

    Attributes:
        train: Of the head: steps, batch, learning rate, average of the weights and so on. Its `crop` is that of the
            images whose features are kept, `encoder_weights` what the encoder has.
        images: To learn from at most, 0 for all.
        held_out: Share of the images that networks are scored on.
        reward: ``"score"`` of the task, or ``"geometric"``: see `hwnas.search.study.evaluators.base.reward`.
        then: Of what is promising, the training end to end that follows, from the encoder's weights and the head's; its
            score is then that of the trial. Its own `held_out` and `reward` are not read. None for none.
        stop: What is promising.

    Raises:
        HwnasError: If a setting is out of range, or needs more than a head.
    """

    train: TrainConfig
    images: int = 0
    held_out: float = 0.1
    reward: Reward = "score"
    then: ShortTraining | None = None
    stop: EarlyStop = field(default_factory=EarlyStop)

    def __post_init__(self) -> None:
        check_part("a head on features", self.held_out, self.reward, self.train)
        check_ranges(
            "a head on features",
            *not_below(self, ("images",), 0),
            ("an aux_weight and a drop_path of 0", self.train, not (self.train.aux_weight or self.train.drop_path)),
            ("an accumulate of 1", self.train.accumulate, self.train.accumulate == 1),
            ("a precision of fp32 or bf16", self.train.precision, self.train.precision != "fp16"),
        )

    def evaluation(self, inputs: Inputs, folder: Path, seed: int) -> Heads:
        """Compute the features, unless they are there.

        Raises:
            HwnasError: If the encoder has decisions that are open.
        """
        refuse_weights(inputs)
        fixed = inputs.problem.answers
        if left := [d.name for g in inputs.space.encoder.groups for d in g.decisions if d.name not in fixed]:
            raise HwnasError(
                f"features are those of one encoder, and {left[0]!r} of {inputs.space.encoder.name!r} is open; decide "
                "it in an earlier stage, or evaluate by short trainings"
            )
        return Heads(self, inputs, folder, seed)


class _Head(nn.Module):
    """A head under the name that it has in its network."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.head(image, features)
        return out


class Heads(Evaluation):
    """Trains heads on cached features."""

    def __init__(self, config: HeadOnFeatures, inputs: Inputs, folder: Path, seed: int) -> None:
        """Open the features."""
        self.config, self.inputs, self.seed = config, inputs, seed
        self.settings = replace(config.train, seed=config.train.seed + seed)
        self.context = Context(inputs.device, config.train.precision, config.train.channels_last)
        self.task = task_of(inputs.data)
        self.learned, self.held_out = parts(inputs.data, config.held_out, seed, config.images)
        net, self.weights_digest = self._encoder()
        self.start = {k: v.detach().cpu().clone() for k, v in net.state_dict().items() if not k.startswith("head")}
        made_with = {
            "encoder": repr(inputs.space.encoder),
            "fixed": sorted(inputs.problem.answers.items()),
            "weights": self.weights_digest,
            "data": [self.learned.name, list(inputs.data.mean), list(inputs.data.std)],
            "augmentation": asdict(self.settings.augmentation),
            "crop": list(self.settings.crop),
            "seed": self.settings.seed,
        }
        self.train_features = self._cache(folder / "learned", made_with, net, self.learned, crops=True)
        self.val_features = self._cache(folder / "held-out", made_with, net, self.held_out, crops=False)
        weights = weights_of(self.settings, inputs.data)
        self.criterion = criterion(self.settings, self.task, None if weights is None else self.context.tensor(weights))
        self.then = None
        if config.then is not None:
            then = replace(config.then, held_out=config.held_out, reward=config.reward)
            self.then = ShortTrainings(then, inputs, (self.learned, self.held_out), seed)

    def _encoder(self) -> tuple[SpaceNet, str]:
        """Return a network with the encoder that all trials have, and what tells its weights from others."""
        inputs, own = self.inputs, self.settings
        with seeded(own.seed):
            arch = inputs.problem.draw(np.random.default_rng(0))
            net = inputs.space.build(arch, form="deploy")
        assert isinstance(net, SpaceNet), "a complete architecture computes"
        if own.encoder_weights:
            digest = start_encoder(net, inputs.space.encoder, own.encoder_weights, inputs.data.mean, inputs.data.std)
            return self.context.module(net).eval(), digest
        # Statistics of nothing would let the maps of random weights vanish or explode.
        encoder = self.context.module(net).encoder
        source = self._source(self.learned, crops=True)
        batches = [tensors(source(i)) for i in range(RECALIBRATION)]
        with torch.no_grad():
            recalibrate(encoder, lambda images: _maps(encoder, images)[-1], batches, self.context)
        return net.eval(), sha256(canonical_json(["random", own.seed]))

    def _source(self, part: Part, crops: bool) -> BatchSource:
        own = self.settings
        size = own.crop if crops else part[0].image.shape[:2]
        how = own.augmentation if crops else False
        return batch_source(part, range(len(part)), 1 if not crops else own.batch, size, own.seed, how)

    def _cache(self, folder: Path, made_with: dict[str, Any], net: SpaceNet, part: Part, crops: bool) -> Cache:
        source, n = self._source(part, crops), len(part)

        @torch.no_grad()
        def fill() -> Iterator[list[NDArray[Any]]]:
            net.encoder.eval()
            done = 0
            for i in range(-(-n // source.batch)):
                images, labels = (a[: n - done] for a in source(i))
                with self.context.autocast():
                    maps = _maps(net.encoder, self.context.tensor(torch.from_numpy(images)))
                yield [images, labels.astype(np.int32), *(read(m.float()) for m in maps)]
                done += len(images)

        own = {**made_with, "images": list(part.indices), "crops": crops}
        return open_cache(folder, own, n, fill)

    def evaluate(
        self, arch: Architecture, number: int, folder: Path, history: Sequence[Tried], update: Update = ignore
    ) -> Outcome:
        """Train the head of an architecture on the features; if it is promising, all of its network."""
        head, weights = self._trained(arch, update)
        if head is None:
            return Outcome(LEAST, {"diverged": True, FIRST: LEAST})
        first = self._score(head)
        facts = {FIRST: first, "steps": self.settings.steps}
        if self.then is None:
            return Outcome(first, facts)
        before = [(t.number, float(str(t.facts[FIRST]))) for t in history if FIRST in t.facts and t.number < number]
        if not self.config.stop.goes_on(before, number, first, self.seed):
            return Outcome(first, {**facts, "stopped": True})
        last = self.then.trained(arch, folder, {**self.start, **weights}, update)
        return Outcome(last.score, {**facts, **last.facts, FIRST: first})

    def _trained(self, arch: Architecture, update: Update) -> tuple[_Head | None, dict[str, Tensor]]:
        """Return a trained head and its weights, as the network names them; None where its loss is not finite."""
        own = self.settings
        with seeded(own.seed):
            net = self.inputs.space.build(arch, form="deploy")
        assert isinstance(net, SpaceNet), "a complete architecture computes"
        head = _Head(net.head)
        average = averaged(head, self.context, own.average) if own.average else None
        head = self.context.module(head)
        optimizer = make_optimizer(own, head)
        losses: list[Tensor] = []
        with seeded(own.seed):
            for step in range(own.steps):
                set_learning_rate(optimizer, learning_rate(own, step, own.steps))
                head.train()
                optimizer.zero_grad()
                images, labels, maps = self._batch(self.train_features, self._chosen(step))
                with self.context.autocast():
                    scores = head(images, maps)
                loss = self.criterion(scores.float(), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                clip(head.parameters(), own.clip)
                optimizer.step()
                if average is not None:
                    average.update_parameters(head)
                losses.append(loss.detach())
                update(step + 1)
        if not np.isfinite(read(torch.stack(losses))).all():
            return None, {}
        out = head if average is None else average.module
        assert isinstance(out, _Head)
        return out.eval(), {k: v.detach().cpu().clone() for k, v in out.state_dict().items()}

    def _chosen(self, step: int) -> list[int]:
        """Return the images of a step: each epoch visits all of them once."""
        own, n = self.settings, len(self.train_features)
        first = step * own.batch
        orders = {
            e: np.random.default_rng([own.seed, e]).permutation(n)
            for e in range(first // n, (first + own.batch - 1) // n + 1)
        }
        return [int(orders[p // n][p % n]) for p in range(first, first + own.batch)]

    def _batch(self, cache: Cache, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
        images, labels, *maps = (self.context.tensor(torch.from_numpy(a)) for a in cache.at(indices))
        return images, labels.long(), maps

    @torch.no_grad()
    def _score(self, head: _Head) -> float:
        counts = ConfusionMatrix(len(self.held_out.classes.names))
        for i in range(len(self.val_features)):
            images, labels, maps = self._batch(self.val_features, [i])
            scores = head(images, maps)
            if scores.dim() == 4:
                scores = resized(scores, (labels.shape[1], labels.shape[2]))
            counts.update(read(scores.argmax(1)), read(labels))
        return reward(counts, self.task, self.config.reward)


def _maps(encoder: EncoderNet, images: Tensor) -> list[Tensor]:
    """Return the features of an encoder that is decided: one of each stride."""
    return [f[0].value for f in encoder(images).features if f[0] is not None]
