"""Drop path and auxiliary heads: what training adds to a network, and that none of it is left in what ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hwnas.data import Shapes, Synthetic
from hwnas.errors import HwnasError
from hwnas.export import load_weights
from hwnas.learn.losses import task_loss
from hwnas.learn.schedule import learning_rate
from hwnas.learn.settings import TrainConfig
from hwnas.learn.training import Training, train
from hwnas.ops import trace
from hwnas.ops.drop_path import DropPath, set_drop_path
from hwnas.ops.mixed import MixedOp
from hwnas.spaces import DARTS_V2, Scale, Space, darts_space, sample, trace_space
from hwnas.steplog import StepLog

SIZE = (32, 32)
SPACE = darts_space(Scale(4, 3, SIZE), 10, "cifar", "classification", nodes=2)
ARCH = sample(SPACE, np.random.default_rng(5))
STREETS = darts_space(Scale(4, 3, (32, 48)), 11, nodes=2, head_channels=8)
CONFIG = TrainConfig(
    steps=12,
    batch=4,
    crop=SIZE,
    evaluate_every=5,
    checkpoint_every=4,
    optimizer="sgd",
    lr=0.025,
    decay=3e-4,
    accumulate=2,
    aux_weight=0.4,
    drop_path=0.5,
    cutout=8,
    smoothing=0.1,
)
pytestmark = pytest.mark.usefixtures("one_thread")


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


class TestDropPath:
    def test_whole_samples_are_left_out_and_the_mean_stays(self) -> None:
        drop, x = DropPath(), torch.rand(4000, 2, 3, 3) + 1
        drop.rate, before = 0.3, x.clone()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            got = drop(x)
        assert torch.equal(x, before)  # other edges read it
        left_out = (got == 0).flatten(1).all(1)
        torch.testing.assert_close(got[~left_out], x[~left_out] / 0.7)
        assert float(left_out.float().mean()) == pytest.approx(0.3, abs=4 * (0.21 / 4000) ** 0.5)
        assert float(got.mean()) == pytest.approx(float(x.mean()), rel=0.05)

    def test_gradients_go_through_what_is_kept(self) -> None:
        drop, x = DropPath(), torch.ones(64, 1, 1, 1, requires_grad=True)
        drop.rate = 0.5
        out = drop(x)
        out.sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, out.detach())  # 0 or 2
        assert set(x.grad.flatten().tolist()) == {0.0, 2.0}

    def test_only_in_training_and_not_in_a_trace(self) -> None:
        arch = SPACE.genotype(ARCH).architecture(SPACE)
        net, x = SPACE.build(arch, form="deploy"), torch.rand(8, 3, *SIZE)
        calls = [(c.spec, c.inputs) for c in trace(net.eval(), (1, 3, *SIZE)).calls]
        with torch.no_grad():
            clean = net(x)
            set_drop_path(net, 0.9)
            assert torch.equal(net(x), clean)
            dropped = net.train()(x)
            set_drop_path(net, 0.0)
            assert not torch.allclose(dropped, net(x))
        set_drop_path(net, 0.9)
        assert [(c.spec, c.inputs) for c in trace(net, (1, 3, *SIZE)).calls] == calls
        assert trace_space(SPACE, arch, labels=False).cost().macs == trace(net.eval(), (1, 3, *SIZE)).cost().macs

    def test_on_every_op_but_identities(self) -> None:
        space = darts_space(Scale(4, 6, SIZE), 10, "cifar", "classification")
        net = space.build(DARTS_V2.architecture(space), form="deploy")
        edges = [(m.ops[m.answer], m.drop) for m in net.modules() if isinstance(m, MixedOp) and m.answer is not None]
        assert len(edges) == 6 * 8
        exempt = [isinstance(op, nn.Identity) for op, _ in edges]
        assert exempt == [not isinstance(drop, DropPath) for _, drop in edges]
        # Skips of DARTS_V2: two in a normal cell; in a reduction cell three from its own nodes, at stride 1.
        assert sum(exempt) == 4 * 2 + 2 * 3
        assert not any(isinstance(m, DropPath) for m in space.build().modules())

    def test_the_rate_grows_linearly_from_0(self) -> None:
        t = Training(SPACE, ARCH, replace(CONFIG, steps=5), Shapes("train", SIZE, length=20))
        rates = []
        for _ in range(5):
            t.advance()
            rates.append({m.rate for m in t.net.modules() if isinstance(m, DropPath)})
        assert rates == [{0.5 * k / 5} for k in range(5)]


class TestAuxiliary:
    # Obtained by running the public DARTS code, quark0/darts at f276dd3.
    @pytest.mark.parametrize(
        ("space", "n_parameters", "tap"),
        [
            (darts_space(Scale(36, 20, SIZE), 10, "cifar", "classification"), 3_825_768, (576, 8, 8)),
            (darts_space(Scale(48, 14, (224, 224)), 1000, "imagenet", "classification"), 5_979_528, (768, 7, 7)),
        ],
    )
    def test_golden_sizes(self, space: Space, n_parameters: int, tap: tuple[int, ...]) -> None:
        with torch.device("meta"):
            net, head = space.build(DARTS_V2.architecture(space), form="deploy").eval(), space.build_auxiliary().eval()
            assert parameters(net) + parameters(head) == n_parameters
            image = torch.empty(2, 3, *space.scale.size)
            scores, read = net.with_auxiliary(image)
            assert read.shape == (2, *tap)
            assert head(image, read).shape == scores.shape == (2, space.classes)
        convolutions = [type(m).__name__ for m in head.layers if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        imagenet = space.encoder.stem == "imagenet"
        assert convolutions == ["Conv2d", "BatchNorm2d", "Conv2d", *([] if imagenet else ["BatchNorm2d"])]

    @pytest.mark.parametrize("cells", [1, 2, 3, 5, 8])
    def test_it_fits_the_map_it_reads(self, cells: int) -> None:
        for space in (SPACE.at(Scale(4, cells, (35, 41))), STREETS.at(Scale(4, cells, SIZE))):
            net, head = space.build(form="search"), space.build_auxiliary()
            uniform = {g.name: torch.full(g.shape, 1 / g.shape[1]) for g in space.groups}
            image = torch.rand(2, 3, *space.scale.size)
            scores, tap = net.with_auxiliary(image, uniform)
            assert head(image, tap).shape == scores.shape

    def test_maps_that_are_too_small_are_refused(self) -> None:
        with pytest.raises(HwnasError, match=r"reads maps of at least 8x8, here they are 7 high .*aux_weight=0"):
            SPACE.at(Scale(4, 3, (28, 60))).build_auxiliary()
        SPACE.at(Scale(4, 3, (29, 60))).build_auxiliary()

    def test_its_loss_counts_as_much_as_it_should(self) -> None:
        data = Shapes("train", SIZE, length=20)
        t = Training(SPACE, ARCH, replace(CONFIG, accumulate=1, drop_path=0, smoothing=0), data)
        images, labels = (torch.from_numpy(a) for a in t.batches(0))
        assert t.auxiliary is not None
        with torch.no_grad():
            scores, tap = t.net.train().with_auxiliary(images)
            own, aux = (float(task_loss(s, labels)) for s in (scores, t.auxiliary.train()(images, tap)))
        early = next(t.net.stem0.parameters())
        before = early.detach().clone(), next(t.auxiliary.parameters()).detach().clone()
        assert float(t.advance()["loss"]) == pytest.approx(own + 0.4 * aux, rel=1e-5)
        assert not torch.equal(early, before[0])
        assert not torch.equal(next(t.auxiliary.parameters()), before[1])

    def test_segmentation_has_one_too(self) -> None:
        data = Synthetic("train", (32, 48), length=4)
        config = TrainConfig(steps=3, batch=2, crop=(24, 32), aux_weight=0.4)
        t = Training(STREETS, sample(STREETS, np.random.default_rng(0)), config, data)
        assert t.auxiliary is not None
        images = torch.rand(2, 3, 24, 32)
        assert t.auxiliary(images, t.net.with_auxiliary(images)[1]).shape == (2, 11, 24, 32)
        assert np.isfinite([t.advance()["loss"] for _ in range(3)]).all()


class Interrupted(Exception):
    pass


class TestTraining:
    def run(self, folder: Path, stop_at: int | None = None) -> tuple[Training, float]:
        t = Training(SPACE, ARCH, CONFIG, Shapes("train", SIZE, length=30))

        def update(done: int, note: str = "", total: int | None = None) -> None:
            if done == stop_at:
                raise Interrupted

        val = Shapes("val", SIZE, length=20)
        return t, train(t, val, folder, {}, StepLog(folder / "train.jsonl"), update)

    def test_with_everything_on_a_resumed_training_ends_with_the_same_bits(self, tmp_path: Path) -> None:
        whole, best = self.run(tmp_path / "whole")
        for stop_at in (3, 6, 9):
            folder = tmp_path / str(stop_at)
            with pytest.raises(Interrupted):
                self.run(folder, stop_at)
            torch.manual_seed(stop_at)  # whatever the generator of another process has done before
            again, again_best = self.run(folder)
            assert again_best == best
            assert again.auxiliary is not None
            assert whole.auxiliary is not None
            for a, b in ((again.net, whole.net), (again.auxiliary, whole.auxiliary)):
                left, right = a.state_dict(), b.state_dict()
                assert [k for k in right if not torch.equal(left[k], right[k])] == []
            logs = (
                [r | {"seconds": 0} for r in StepLog(f / "train.jsonl").read()] for f in (folder, tmp_path / "whole")
            )
            assert next(logs) == next(logs)

    def test_what_is_written_is_the_network_that_ships(self, tmp_path: Path) -> None:
        self.run(tmp_path)
        network = SPACE.build(ARCH, form="deploy")
        load_weights(network, tmp_path / "model.safetensors")
        assert load_file(tmp_path / "model.safetensors").keys() == network.state_dict().keys()
        steps = StepLog(tmp_path / "train.jsonl").read()
        assert [s["step"] for s in steps if "val_accuracy" in s] == [4, 9, 11]

    def test_masks_are_functions_of_seed_and_step(self) -> None:
        data = Shapes("train", SIZE, length=20)

        def masks(seed: int, step: int) -> list[bool]:
            t, found = Training(SPACE, ARCH, replace(CONFIG, steps=4, seed=seed, aux_weight=0), data), list[bool]()
            t.step = step
            for drop in (m for m in t.net.modules() if isinstance(m, DropPath)):
                drop.register_forward_hook(lambda m, x, out: found.extend((out == 0).flatten(1).all(1).tolist()))
            t.advance()
            return found

        one = masks(0, 3)
        assert 0 < sum(one) < len(one)
        assert one[: len(one) // 2] != one[len(one) // 2 :]  # two batches a step
        assert masks(0, 3) == one
        assert masks(1, 3) != one != masks(0, 2)

    def test_sgd_is_that_of_the_paper(self) -> None:
        t = Training(SPACE, ARCH, CONFIG, Shapes("train", SIZE, length=20))
        (group,) = t.optimizer.param_groups
        assert isinstance(t.optimizer, torch.optim.SGD)
        assert (group["momentum"], group["weight_decay"], len(group["params"])) == (0.9, 3e-4, len(t._parameters()))
        rates = [learning_rate(replace(CONFIG, steps=100), s) for s in range(100)]
        assert rates[0] == 0.025
        assert rates[50] == pytest.approx(0.0125)
        assert rates == sorted(rates, reverse=True)
        assert 0 < rates[-1] < 1e-4

    def test_accumulated_gradients_are_the_mean_of_their_batches(self) -> None:
        data, config = Shapes("train", SIZE, length=20), replace(CONFIG, drop_path=0, aux_weight=0, clip=0)
        both = Training(SPACE, ARCH, config, data)
        loss = float(both.advance()["loss"])
        losses, gradients = [], []
        for step in (0, 1):
            one = Training(SPACE, ARCH, replace(config, accumulate=1), data)
            one.step = step
            losses.append(float(one.advance()["loss"]))
            gradients.append([p.grad for p in one.net.parameters()])
        assert loss == pytest.approx(np.mean(losses), rel=1e-6)
        for p, a, b in zip(both.net.parameters(), *gradients, strict=True):
            torch.testing.assert_close(p.grad, (a + b) / 2)

    def test_bfloat16_changes_little_and_leaves_the_weights_alone(self) -> None:
        data = Shapes("train", SIZE, length=20)
        full, half = (Training(SPACE, ARCH, replace(CONFIG, drop_path=0, precision=p), data) for p in ("fp32", "bf16"))
        a, b = (float(t.advance()["loss"]) for t in (full, half))
        assert a != b
        assert b == pytest.approx(a, rel=0.05)
        assert {p.dtype for p in half._parameters()} == {torch.float32}

    def test_smoothing_spreads_the_target(self) -> None:
        scores, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
        logs = torch.log_softmax(scores, 1)[0]
        by_hand = -(0.9 * logs[0] + 0.1 * logs.mean())
        assert float(task_loss(scores, labels, smoothing=0.1)) == pytest.approx(float(by_hand))
        pixel = task_loss(scores[..., None, None], labels[:, None, None], smoothing=0.1)
        assert float(pixel) == pytest.approx(float(by_hand))

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"drop_path": 1.0}, "drop_path, smoothing and average from 0 to less than 1"),
            ({"smoothing": -0.1}, "drop_path, smoothing and average from 0 to less than 1"),
            ({"accumulate": 0}, "of 1 or more"),
            ({"aux_weight": -1.0}, "an aux_weight of 0 or more"),
            ({"optimizer": "adam"}, "an optimizer of adamw, sgd"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, change: dict[str, object], why: str) -> None:
        with pytest.raises(HwnasError, match=f"a training needs .*{why}; got TrainConfig"):
            replace(CONFIG, **change)  # type: ignore[arg-type]
