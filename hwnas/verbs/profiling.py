"""`hwnas profile`: from a recipe to a latency table."""

from __future__ import annotations

from pathlib import Path

from hwnas.errors import HwnasError
from hwnas.latency.table import LatencyTable
from hwnas.profile import build_table, make_plan
from hwnas.recipes import Recipe
from hwnas.run import Run
from hwnas.runtime.engines import open_engine
from hwnas.runtime.plan import load_plan
from hwnas.runtime.supervise import supervise
from hwnas.runtime.work import collect
from hwnas.ui import bar, console, summary


def plan_only(recipe: Recipe, folder: Path, engine: str | None) -> None:
    """Write what a recipe needs measured into a folder to carry to another box.

    Without `engine` the plan is for engines that merge identical ops, as all do that optimise graphs.

    Raises:
        HwnasError: If the folder has something in it already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise HwnasError(f"{folder} is not empty; name a new folder")
    entries = _plan(recipe, folder, engine is None or open_engine(engine).merges)
    facts: dict[str, object] = {"plan": folder, "entries": entries}
    summary(facts, f"on the device: python -m hwnas.runtime measure {folder.name}  (numpy and the engine suffice)")


def _plan(recipe: Recipe, folder: Path, merges: bool) -> int:
    """Write a plan unless a whole one is there already; return its number of entries."""
    if (folder / "plan.json").exists():
        return len(load_plan(folder).entries)
    with bar("plan: export ops and networks", None) as update:
        return make_plan(recipe.space, recipe.scales(), folder, recipe.calibration, merges, update)


def profile(run: Run, engine: str | None, threads: int | None, results: Path | None) -> None:
    """Measure the latency table of a run's recipe on this machine, or build it from results measured elsewhere.

    Without `engine` and `threads` those the run was made with, else ONNX Runtime on one thread.
    """
    path, recipe, following = run.folder / "table.json", run.recipe, run.command("search")
    run.ask(engine=engine, threads=threads)
    if path.exists():
        summary({"table": path, "state": "complete, nothing to do"}, following)
        return
    folder = run.folder / "plan"
    if results is None:
        engine, threads = str(run.settings.get("engine", "onnxruntime")), int(run.settings.get("threads", 1))
        opened = open_engine(engine, threads)
        run.ask(engine=engine, threads=threads)
        run.commit()
        entries = _plan(recipe, folder, opened.merges)
        total = entries * recipe.passes
        # Seen: some 0.15 s a measurement, loading included, where ops take milliseconds.
        console.print(f"{entries} entries x {recipe.passes} passes on {engine}, some {total * 0.15 / 60:.1f} minutes")
        results = run.folder / "results.jsonl"
        with bar("measure", total) as update:
            supervise(
                folder,
                engine,
                threads,
                recipe.passes,
                results,
                lambda p: update(p.done, str(p.record["key"])[:60], p.total),
            )
    else:
        where, _ = collect(results)  # a file that cannot be read is refused before anything is written
        run.ask(engine=where["engine"]["name"], threads=where["engine"]["threads"])
        _plan(recipe, folder, bool(where["merges"]))
    made = build_table(folder, results)
    run.commit()
    made.save(path)
    _show_table(made, following)


def _show_table(made: LatencyTable, following: str) -> None:
    bad = [r for r in made.rows.values() if r.status != "ok"]
    facts: dict[str, object] = {"table": made.path, "device": made.name, "ops": len(made.rows)}
    facts["not ok"] = f"{len(bad)} ({', '.join(sorted({r.status for r in bad})) or 'none'})"
    if made.report:
        ours, plain = made.report["ours"], made.report["sum"]
        facts["error"] = (
            f"{ours['mape']:.1%} on {ours['n']} networks it was not fitted on (plain sum {plain['mape']:.1%}); "
            f"passes differ by {made.report['noise']:.1%}"
        )
    summary(facts, following)
