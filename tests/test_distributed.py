"""Several processes train and search as one does, and a lost one costs nothing but time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hwnas.errors import HwnasError
from hwnas.learn.distributed import ALONE, World
from hwnas.ranks import Ranks, ranks_here
from hwnas.steplog import StepLog
from tests.distributed_cases import CASES, Values, Word
from tests.verbs import RECIPE, done, losses, untrain

ROOT = Path(__file__).parents[1]
MODEL = Path("train/model.safetensors")
pytestmark = pytest.mark.usefixtures("one_thread")


class Processes:
    """Runs commands in several processes at once."""

    def __init__(self, process: subprocess.Popen[str], printed: Path) -> None:
        self._process, self._printed = process, printed

    def run(self, *command: str, ranks: int = 2, victim: int = -1, step: int = 0, fate: str = "kill") -> list[int]:
        """Run a command in the present directory and return the exit codes by rank."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._printed.unlink(missing_ok=True)
        word = Word(
            folder=str(Path.cwd()),
            ranks=ranks,
            command=list(command),
            printed=str(self._printed),
            victim=victim,
            step=step,
            fate=fate,
        )
        self._process.stdin.write(json.dumps(word) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes

    @property
    def printed(self) -> str:
        """What they printed, without what some versions of gloo do."""
        lines = self._printed.read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo]"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment = {**os.environ, **own}  # torch is imported before the command line could say how much it logs
    command = (sys.executable, "-m", "tests.distributed_cases")
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Processes(process, tmp_path_factory.mktemp("processes") / "printed.txt")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def of_two(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Values]:
    """What two processes compute of all cases."""
    path = tmp_path_factory.mktemp("cases") / "values.pt"
    assert processes.run("compute", str(path)) == [0, 0], processes.printed
    values: dict[str, Values] = torch.load(path)
    return values


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(case: str, of_two: dict[str, Values]) -> None:
    one, two = CASES[case](ALONE), of_two[case]
    assert one.keys() == two.keys()
    for name, value in one.items():
        exact = value.dtype == torch.float64 and "training" not in case  # whose network is in float32
        tolerance = 1e-9 if exact else 1e-5
        torch.testing.assert_close(
            two[name], value.detach(), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def untrained(finished: Path) -> Path:
    """A run that is searched; ``one`` beside it was trained in one process."""
    return untrain(finished, "one")


def one_line(processes: Processes, match: str) -> None:
    """Check that all processes together printed one line, beside those of how far they were."""
    said = re.sub(r"^train \d+/\d+, .*\n", "", processes.printed, flags=re.MULTILINE)
    assert re.fullmatch(r"hwnas: [^\n]+\n", said), said
    assert re.search(match, said), said


@pytest.mark.slow
def test_a_training(untrained: Path, processes: Processes) -> None:
    """As of one process; and where one of two is lost, the same command goes on to the same bits."""
    assert processes.run("train", RECIPE) == [0, 0], processes.printed
    assert processes.printed.count("next: hwnas export") == 1
    assert losses(untrained) == pytest.approx(losses(untrained.with_name("one")), abs=1e-3)
    lines = StepLog(untrained / "train.jsonl").read()
    assert [(line["step"], line["processes"]) for line in lines] == [(step, 2) for step in range(6)]
    whole = (untrained / MODEL).read_bytes()
    shutil.rmtree(untrained / "train")
    assert processes.run("train", RECIPE, victim=1, step=4) == [2, -signal.SIGKILL]
    one_line(processes, "rank 0 of 2: another process of this command has ended; the same command goes on where it")
    shutil.copytree(untrained, untrained.with_name("killed"))
    assert processes.run("train", RECIPE) == [0, 0]
    assert (untrained / MODEL).read_bytes() == whole
    done("train", "killed")  # a checkpoint is not of a number of processes
    assert losses(untrained.with_name("killed")) == pytest.approx(losses(untrained), abs=1e-3)


@pytest.mark.slow
def test_a_search(profiled: Path, jobs: Path, processes: Processes) -> None:
    assert processes.run("search", RECIPE) == [0, 0], processes.printed
    assert processes.printed.count("next: hwnas train") == 1
    one, two = (StepLog(run / "search.jsonl").read() for run in (jobs / "finished" / "runs" / RECIPE, profiled))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    # Later steps amplify rounding: the cases above are in float64.
    for name in ("train_loss", "expected_ms"):
        assert two[0][name] == pytest.approx(one[0][name], abs=1e-4)
    assert (profiled / "arch.json").exists()


@pytest.mark.slow
def test_the_owner_of_the_run_folder_is_lost(untrained: Path, processes: Processes) -> None:
    assert processes.run("train", RECIPE, victim=0, step=4) == [-signal.SIGKILL, 2]
    one_line(processes, "rank 1 of 2: another process of this command has ended")
    assert processes.run("train", RECIPE) == [0, 0], processes.printed
    assert len(losses(untrained)) == 6


def test_an_error_in_one_process(untrained: Path, processes: Processes) -> None:
    for rank in (0, 1):
        assert processes.run("train", RECIPE, victim=rank, step=1, fate="sample 7 is damaged") == [2, 2]
        one_line(processes, f"rank {rank} of 2: sample 7 is damaged")


@pytest.mark.parametrize(
    ("command", "ranks", "match"),
    [
        (("train", RECIPE), 3, "needs a batch that its 3 processes can share evenly, got 2"),
        (("train", RECIPE, "--set", "train.compile=true"), 2, "with compile runs in one process"),
        (("train", RECIPE, "--device", "cuda:0"), 2, "several processes take a GPU each"),
        (("train", "nobody"), 2, "there is no run 'nobody' here"),
        (("ls",), 2, "only train and search run in several processes"),
    ],
)
def test_what_several_processes_cannot_do(
    untrained: Path, processes: Processes, command: tuple[str, ...], ranks: int, match: str
) -> None:
    assert processes.run(*command, ranks=ranks) == [2] * ranks, processes.printed
    one_line(processes, match)
    assert not (untrained / "train").exists()


class TestRanks:
    def test_without_torchrun_there_is_one_process(self) -> None:
        assert ranks_here({}) == ranks_here({"WORLD_SIZE": "4"}) == Ranks()

    def test_what_torchrun_sets(self) -> None:
        given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
        assert ranks_here(given) == Ranks(5, 8, 1, 4)
        assert ranks_here({"RANK": "1", "WORLD_SIZE": "2"}) == Ranks(1, 2, 1, 2)

    @pytest.mark.parametrize(
        ("rank", "size", "match"),
        [("2", "2", "a RANK from 0 to less than WORLD_SIZE, got 2"), ("x", "2", "whole numbers .* RANK='x'")],
    )
    def test_what_cannot_be(self, rank: str, size: str, match: str) -> None:
        with pytest.raises(HwnasError, match=match):
            ranks_here({"RANK": rank, "WORLD_SIZE": size})

    def test_each_process_of_a_machine_has_a_gpu_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
        assert [str(World(Ranks(r, 4, r % 2, 2)).device()) for r in range(4)] == ["cuda:0", "cuda:1"] * 2
        with pytest.raises(HwnasError, match="3 processes on this machine and 2 GPUs; use --nproc-per-node 2"):
            World(Ranks(2, 3, 2, 3)).device("cuda")


@pytest.mark.slow
def test_torchrun_relaunches(untrained: Path, processes: Processes) -> None:
    """It starts all processes again where one was killed, and they end with the bits of an uninterrupted training."""
    settings = ("--set", "train.steps=40")
    assert processes.run("train", RECIPE, *settings) == [0, 0], processes.printed
    whole = (untrained / MODEL).read_bytes()
    shutil.rmtree(untrained / "train")
    log = untrained / "train.jsonl"
    log.unlink()
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = (*torchrun, "--standalone", "-m", "hwnas", "train", RECIPE)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not log.exists() or log.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [int(c) for c in children if b"hwnas" in Path(f"/proc/{c}/cmdline").read_bytes()]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(300) == 0, said
    assert (untrained / MODEL).read_bytes() == whole
    assert [line["step"] for line in StepLog(log).read()] == list(range(40))
