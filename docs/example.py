"""The whole job from Python: a latency table, a search under a budget, training, and the proof on the engine.

usage: python docs/example.py [ENGINE]      in seconds, with networks that are of no use; everything is in runs/example/
"""

import sys

from hwnas import recipes
from hwnas.jobs import (
    PriceSettings,
    ProfileSettings,
    Run,
    SearchSettings,
    export,
    price,
    profile,
    search,
    train,
    validate,
)


def main(engine: str = "onnxruntime") -> None:
    """Run each job; each returns a value, keeps files in the run, and goes on where it was stopped."""
    run = Run("example")
    run.ask(recipe=recipes.get("darts-tiny"))

    table = profile(run, ProfileSettings(engine=engine)).table
    print(f"table: {len(table.rows)} ops on {table.name}")

    derived = search(run, SearchSettings(fps=(2000.0,))).derived
    cost = price(PriceSettings(run.name)).price
    print(f"derived: {derived.architecture.id}, {cost.complexity}")
    for kind, (calls, ms) in cost.by_kind().items():
        print(f"  {calls:3d} {kind:<18} {ms:.4f} ms")

    train(run)
    bundle = export(run).bundle
    report = validate(run).report
    print(f"deploy: {bundle.folder}")
    print(f"predicted {report.predicted_ms:.4g} ms, measured {report.measured_ms:.4g} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
