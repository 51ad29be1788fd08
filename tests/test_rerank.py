"""What derived networks score, and the refusal to choose on noise."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.data import SegmentationData, open_dataset
from hwnas.data.base import CLASSIFICATION, IGNORE_LABEL, SEGMENTATION, split_halves
from hwnas.errors import HwnasError
from hwnas.jobs import reranking
from hwnas.learn.losses import task_loss
from hwnas.learn.training import TrainConfig
from hwnas.metrics import ConfusionMatrix, scores
from hwnas.run import Run
from hwnas.search import rerank
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.rerank import Judgement, Supernet, compare, decide, judge, judge_trained, recalibrate
from hwnas.spaces import Scale, darts_space, sample
from tests.verbs import RECIPE, done, hwnas, tree

SIZE = (32, 48)
SPACE = darts_space(Scale(4, 3, SIZE), 11, nodes=2, head_channels=8)
CONFIG = SearchConfig(Scale(4, 3, SIZE), steps=4, warmup=1, batch=2, crop=(32, 32), w_lr=0.1)
Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return open_dataset("synthetic", "train", SIZE)


@pytest.fixture(scope="module")
def supernet(data: SegmentationData) -> Supernet:
    bilevel = BilevelSearch(SPACE, CONFIG, data)
    for _ in range(CONFIG.steps):
        bilevel.advance()
    return Supernet(SPACE, CONFIG, bilevel.state()["net"], data)


def made_up(n: int, classes: int, seed: int, right: float) -> Judgement:
    """Return a judgement of n images of which each pixel is right with a probability."""
    rng = np.random.default_rng(seed)
    confusions = np.stack(
        [
            np.stack([rng.multinomial(100, right * np.eye(classes)[c] + (1 - right) / classes) for c in range(classes)])
            for _ in range(n)
        ]
    )
    return Judgement(SEGMENTATION, rng.normal(1 - right, 0.05, n), confusions)


class TestJudging:
    def batches(self) -> Batches:
        g = torch.Generator().manual_seed(0)
        out = []
        for n in (3, 2):
            labels = torch.randint(0, 4, (n, 5, 6), generator=g)
            labels[0, :2] = IGNORE_LABEL
            out.append((torch.randn(n, 4, 5, 6, generator=g), labels))
        return out

    def test_it_is_the_loss_and_the_miou_of_the_whole_set(self) -> None:
        batches = self.batches()
        told: list[int] = []
        got = judge(lambda x: x, batches, SEGMENTATION, lambda done, *_, **__: told.append(done))
        confusion = ConfusionMatrix(4)
        losses = []
        for images, labels in batches:
            confusion.update(images.argmax(1).numpy(), labels.numpy())
            losses += [float(task_loss(i[None], one[None])) for i, one in zip(images, labels, strict=True)]
        assert got.score == pytest.approx(confusion.miou(), abs=1e-12)
        assert got.losses == pytest.approx(losses, rel=1e-6)
        assert got.loss == pytest.approx(np.mean(losses), rel=1e-6)
        assert told == [3, 5]
        assert Judgement.from_json(SEGMENTATION, json.loads(json.dumps(got.to_json()))).score == got.score

    def test_images_that_are_classified_are_judged_by_accuracy(self) -> None:
        out = torch.eye(3)[torch.tensor([0, 1, 2, 2])]
        got = judge(lambda x: x, [(out, torch.tensor([0, 1, 2, 0]))], CLASSIFICATION)
        assert got.score == 0.75
        assert got.confusions.shape == (4, 3, 3)

    def test_void_images_count_nothing(self) -> None:
        images = torch.randn(1, 3, 2, 2)
        got = judge(lambda x: x, [(images, torch.full((1, 2, 2), IGNORE_LABEL))], SEGMENTATION)
        assert got.loss == 0
        assert not got.confusions.any()

    def test_classes_that_do_not_occur_are_left_out_of_the_mean(self) -> None:
        confusion = np.zeros((1, 4, 4), int)
        confusion[0, 0, 0], confusion[0, 1, 0] = 3, 1
        assert scores(SEGMENTATION, confusion)[0] == pytest.approx((3 / 4 + 0) / 2)


class TestRecalibration:
    def test_statistics_are_the_mean_over_batches_and_momenta_stay(self) -> None:
        net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3, affine=False))
        first = net[0]
        assert isinstance(first, nn.BatchNorm2d)
        g = torch.Generator().manual_seed(0)
        batches = [(5 + torch.randn(4, 3, 6, 6, generator=g), torch.zeros(4)) for _ in range(3)]
        net(100 * batches[0][0])  # statistics of something else
        recalibrate(net, net, batches)
        expected = torch.stack([x.mean((0, 2, 3)) for x, _ in batches]).mean(0)
        torch.testing.assert_close(first.running_mean, expected)
        torch.testing.assert_close(first.running_var, torch.stack([x.var((0, 2, 3)) for x, _ in batches]).mean(0))
        assert (first.momentum, net.training) == (0.3, False)

    def test_no_statistics_of_the_search_have_a_say(self, supernet: Supernet, data: SegmentationData) -> None:
        """Those of the mixture, under which a single network may score anything."""
        arch = sample(SPACE, np.random.default_rng(0))
        spoiled = {k: v * 100 if "running" in k else v for k, v in supernet.weights.items()}
        net = SPACE.at(CONFIG.scale).build(arch, form="search")
        net.load_state_dict({k: spoiled[k] for k in net.state_dict()})
        clean = supernet.judge(arch)
        assert abs(judge(net.eval(), supernet.batches, SEGMENTATION).loss - clean.loss) > 0.01
        assert Supernet(SPACE, CONFIG, spoiled, data).judge(arch).losses.tolist() == clean.losses.tolist()


class TestSupernet:
    def test_no_judged_image_was_learned_on(self, data: SegmentationData, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[list[int]] = []
        real = rerank.batch_source

        def watched(data: SegmentationData, indices: list[int], *args: object) -> object:
            seen.append(indices)
            return real(data, indices, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(rerank, "batch_source", watched)
        weights = SPACE.build(form="search").state_dict()
        found = Supernet(SPACE, CONFIG, weights, data)
        assert seen == list(split_halves(len(data), CONFIG.seed))
        assert found.images == min(64, len(seen[1]))
        assert sum(len(labels) for _, labels in found.recalibration) == 16

    def test_a_one_hot_mixture_is_judged_as_the_network(self, supernet: Supernet) -> None:
        arch = sample(SPACE, np.random.default_rng(1))
        alone = supernet.judge(arch)
        mixed = supernet.judge(None, SPACE.problem.one_hot(arch))
        assert mixed.losses == pytest.approx(alone.losses, rel=1e-3)
        assert supernet.judge(arch).losses.tolist() == alone.losses.tolist()

    def test_weights_of_another_supernet_are_refused(self, supernet: Supernet, data: SegmentationData) -> None:
        arch = sample(SPACE, np.random.default_rng(1))
        for weights in ({}, {k: v[None] for k, v in supernet.weights.items()}):
            with pytest.raises(HwnasError, match="weights do not fit the recipe any more"):
                Supernet(SPACE, CONFIG, weights, data).judge(arch)

    def test_a_single_level_search_has_no_such_images(self, data: SegmentationData) -> None:
        with pytest.raises(HwnasError, match="leaves no image that its weights have not learned on"):
            Supernet(SPACE, replace(CONFIG, level="single"), {}, data)


class TestDecision:
    def test_a_clear_winner_is_taken_and_said_so(self) -> None:
        judged = [[made_up(40, 5, 0, 0.6)], [made_up(40, 5, 1, 0.5)], [made_up(40, 5, 2, 0.9)]]
        for by in ("score", "loss"):
            verdict = decide(judged, 1, by)
            assert verdict.index == 2
            assert "beyond doubt" in verdict.reason
            assert verdict.comparisons[1].difference == 0
            assert verdict.comparisons[2].difference > verdict.comparisons[0].difference > 0
        assert decide(judged, 2).index == 2
        assert "which is kept" in decide(judged, 2).reason

    @pytest.mark.parametrize("by", ["score", "loss"])
    def test_noise_almost_never_wins(self, by: rerank.Merit) -> None:
        """Networks that differ by chance alone: with four of them, one in twenty choices may be wrong."""
        wrong = 0
        for case in range(60):
            judged = [[made_up(30, 4, 10 * case + i, 0.7)] for i in range(4)]
            verdict = decide(judged, 0, by)
            wrong += verdict.index != 0
            assert (verdict.index != 0) == verdict.comparisons[verdict.index].better
        assert wrong <= 6  # 3 are expected at most; 7 or more come by chance once in 30

    def test_one_repetition_that_disagrees_is_doubt(self) -> None:
        weak, strong = made_up(40, 5, 0, 0.5), made_up(40, 5, 1, 0.8)
        assert decide([[weak, weak], [strong, strong]], 0).index == 1
        # Better on the whole, and beyond doubt in the first training, but worse in the second.
        verdict = decide([[weak, made_up(40, 5, 2, 0.6)], [strong, weak]], 0)
        assert verdict.comparisons[1].difference > 0 > verdict.comparisons[1].low
        assert verdict.index == 0
        assert "which may be chance" in verdict.reason

    def test_pairing_tells_what_the_spread_of_images_hides(self) -> None:
        rng = np.random.default_rng(0)
        hard = rng.normal(2, 1, 50)  # images differ much more than networks do
        confusion = np.ones((50, 2, 2), int)
        one, other = (Judgement(SEGMENTATION, hard + d + rng.normal(0, 0.01, 50), confusion) for d in (0.0, -0.02))
        assert compare([other], [one], "loss").better
        assert not compare([one], [other], "loss").better
        assert compare([one], [one], "loss").difference == 0

    def test_the_interval_narrows_with_images_and_widens_with_confidence(self) -> None:
        def width(n: int, level: float) -> float:
            c = compare([made_up(n, 4, 0, 0.7)], [made_up(n, 4, 1, 0.7)], "score", level)
            assert c.low < c.difference < c.high
            return c.high - c.low

        assert width(200, 0.05) < 0.5 * width(20, 0.05)
        assert width(20, 0.01) > width(20, 0.1)


class TestTraining:
    CONFIG = TrainConfig(steps=4, batch=2, crop=(32, 32), evaluate_every=1, checkpoint_every=1)

    def run(self, data: SegmentationData, folder: Path, stop_at: int | None = None) -> Judgement:
        def update(done: int, note: str = "", total: int | None = None) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        arch = sample(SPACE, np.random.default_rng(0))
        val = open_dataset("synthetic", "val", SIZE)
        return judge_trained(SPACE, arch, self.CONFIG, (data, val), folder, {"data": data.name}, update)

    def test_an_interrupted_one_ends_with_the_same_figures(self, data: SegmentationData, tmp_path: Path) -> None:
        whole = self.run(data, tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            self.run(data, tmp_path / "again", 3)
        again = self.run(data, tmp_path / "again")
        assert again.losses.tolist() == whole.losses.tolist()
        assert (again.confusions == whole.confusions).all()
        log = [json.loads(line) for line in (tmp_path / "whole" / "train.jsonl").read_text().splitlines()]
        assert ["val_miou" in line for line in log] == [False, False, False, True]  # judged once
        assert whole.score == pytest.approx(log[-1]["val_miou"], abs=1e-9)


def arch_json(name: str) -> dict[str, object]:
    out: dict[str, object] = json.loads(Path(f"runs/{name}/arch.json").read_text())
    return out


class TestVerb:
    def test_the_gap_is_measured_with_the_weights_and_else_says_why_not(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hwnas.search.rerank.IMAGES", 64)  # as the run was searched
        found = arch_json(RECIPE)["discretisation_gap"]
        assert isinstance(found, dict)
        assert found["gap"] == pytest.approx(found["derived_loss"] - found["mixture_loss"])
        assert found["images"] == 64
        assert found["standard_error"] > 0
        said = done("derive", RECIPE, "--to", "again")
        assert arch_json("again")["discretisation_gap"] == found  # nothing about it is random
        assert f"discretisation gap  {found['gap']:+.3f}: the supernet's loss is" in said.out
        (finished / "search.pt").unlink()
        assert "discretisation gap  not measured: runs/darts-tiny/search.pt is not there" in " ".join(
            done("derive", RECIPE, "--to", "third").out.split("\n")
        )

    def test_the_supernet_is_asked_about_one_width(self, finished: Path) -> None:
        before = tree(finished)
        said = done("derive", RECIPE, "--rerank", "supernet", "--candidates", "3", "--fps", "3000")
        assert tree(finished) == before
        made = arch_json(f"{RECIPE}-3000fps")
        found = made["rerank"]
        assert isinstance(found, dict)
        assert len(found["candidates"]) == 3
        assert len({c["channels"] for c in found["candidates"]}) == 1
        candidates = made["candidates"]
        assert isinstance(candidates, list)
        assert len([c for c in candidates if c["architecture"]]) == 6
        (chosen,) = [c for c in candidates if c["chosen"]]
        assert chosen["architecture"] == made["architecture"]
        assert found["reason"] in said.out
        kept = max(found["candidates"], key=lambda c: c["utility"])
        assert kept["difference"] == [0, 0, 0]

    def test_a_lower_loss_beyond_doubt_is_taken(self, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Supernet.judge
        best: list[str] = []

        def third_is_best(self: Supernet, arch: object, probs: object = None) -> Judgement:
            got = real(self, arch, probs)  # type: ignore[arg-type]
            best.append(getattr(arch, "id", ""))
            return replace(got, losses=got.losses - (5.0 if len(best) == 3 else 0.0))

        monkeypatch.setattr(Supernet, "judge", third_is_best)
        said = done("derive", RECIPE, "--rerank", "supernet", "--fps", "3000", "--to", "third")
        assert Run("third").derived().architecture.id == best[2]
        assert "a lower loss than the choice of utility, beyond doubt" in said.out

    @pytest.mark.slow
    def test_short_trainings_go_on_where_they_were_stopped(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask = ("derive", RECIPE, "--rerank", "train", "--rerank-steps", "2", "--candidates", "1", "--fps", "3000")
        assert "ask for --candidates 2 or more" in hwnas(*ask).err
        ask = (*ask[:-4], "--candidates", "2", "--fps", "3000")
        done(*ask, "--to", "whole")
        real, calls = reranking.judge_trained, []

        def counted(*args: object) -> Judgement:
            calls.append(args[4])
            if len(calls) == 4:
                raise KeyboardInterrupt
            return real(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(reranking, "judge_trained", counted)
        assert hwnas(*ask, "--to", "again").code == 130
        assert not Path("runs/again/arch.json").exists()
        refused = hwnas(*ask[:-2], "--rerank-steps", "3", "--fps", "3000", "--to", "again")
        assert "was made with how" in refused.err
        done(*ask, "--to", "again")
        assert len(calls) == 4 + 5  # 2 widths, 2 candidates, 2 seeds; three were done
        assert arch_json("again") == arch_json("whole")
        assert not Path("runs/again/rerank").exists()
        assert Path("runs/again/rerank.jsonl").read_bytes() == Path("runs/whole/rerank.jsonl").read_bytes()

    def test_two_tables_hold_a_network_to_two_budgets(self, finished: Path) -> None:
        shutil.copy(finished / "table.json", "b.json")
        tables = ("--table", str(finished / "table.json"), "--table", "b.json")
        done("derive", RECIPE, *tables, "--fps", "2900", "--fps", "3600", "--to", "both")
        made = arch_json("both")
        assert made["budget_ms"] == 1000 / 2900
        (other,) = made["constraints"]  # type: ignore[misc]
        assert other["name"] == "b.json"
        assert other["predicted"] == made["predicted_ms"] < other["most"] == 1000 / 3600
        alone = done("derive", RECIPE, "--fps", "3600", "--to", "alone")
        assert alone.code == 0
        assert (
            Run("alone").derived().architecture == Run("both").derived().architecture
        )  # the stricter of two equal tables
        refused = hwnas("derive", RECIPE, *tables, "--fps", "2900", "--fps", "1e9", "--to", "none")
        assert re.search(r"1000000000\.0 fps by b\.json \(at best [\d.]+ fps by b\.json\) at once", refused.err)
        three = hwnas("derive", RECIPE, *tables, "--fps", "1", "--fps", "2", "--fps", "3")
        assert "2 --table need one --fps for all or one each, in their order; got 3" in three.err

    def test_wishes_are_kept_and_others_need_another_name(self, finished: Path) -> None:
        done("derive", RECIPE, "--fps", "3000", "--max-skips", "0", "--max-params", "20000", "--to", "few")
        made = arch_json("few")
        answers = made["architecture"]["answers"]  # type: ignore[index]
        assert not [d for d, o in answers.items() if d.startswith("normal") and o == "skip_connect"]
        (params,) = made["constraints"]  # type: ignore[misc]
        run = Run("few")
        net = run.space(run.derived()).build(run.derived().architecture, form="deploy")
        assert params["predicted"] == sum(p.numel() for p in net.parameters()) <= 20000
        before = tree(finished.parent)
        again = ("derive", RECIPE, "--fps", "3000", "--to", "few")
        assert "nothing to do" in done(*again, "--max-skips", "0", "--max-params", "20000").out
        for other in ((), ("--max-skips", "1", "--max-params", "20000"), ("--max-skips", "0")):
            assert "give --to NAME" in hwnas(*again, *other).err
        assert tree(finished.parent) == before

    @pytest.mark.parametrize(
        ("args", "match"),
        [
            (("--candidates", "0"), "--candidates must be 1 or more, got 0"),
            (("--max-skips", "-1"), "--max-skips must be 0 or more, got -1"),
            (("--max-macs", "nan"), "--max-macs must be a positive number, got nan"),
            (("--max-params", "0"), "--max-params must be a positive number, got 0"),
            (("--rerank-steps", "5"), "--rerank-steps is for --rerank train"),
            (("--rerank", "train", "--rerank-steps", "0"), "--rerank-steps must be 1 or more, got 0"),
        ],
    )
    def test_wishes_that_are_none(self, finished: Path, args: tuple[str, ...], match: str) -> None:
        before = tree(finished.parent)
        assert match in hwnas("derive", RECIPE, *args, "--to", "x").err
        assert tree(finished.parent) == before
