"""The verb about latency tables, and its actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from hwnas import jobs, show

TableName = Annotated[Positional[str], arg(metavar="TABLE", help="a file, a run, or a table that ships with hwnas")]


@dataclass(frozen=True)
class TableShow:
    """Show how a table was measured, how well it predicts, and what its ops cost.

    Example: hwnas table show darts-quick
    """

    table: TableName
    all: Annotated[bool, arg(help="every row, not only the dearest")] = False

    def __call__(self) -> int:
        """Run the verb."""
        show.content(jobs.find_table(self.table), self.all)
        return 0


@dataclass(frozen=True)
class TableDiff:
    """Compare two tables: per op whether B is better, worse, or cannot be told from A.

    Example: hwnas table diff darts-quick two-threads
    """

    a: Annotated[Positional[str], arg(metavar="A", help="a table, see hwnas table show")]
    b: Annotated[Positional[str], arg(metavar="B", help="another table")]
    all: Annotated[bool, arg(help="every row, not only a summary")] = False

    def __call__(self) -> int:
        """Run the verb."""
        show.difference(jobs.diff_tables(self.a, self.b), self.all)
        return 0


@dataclass(frozen=True)
class TableCheck:
    """Say whether a table still holds on this machine, and which recipes it prices; exit code 1 if it does not.

    Example: hwnas table check darts-quick --measure 8
    """

    table: TableName
    measure: Annotated[int, arg(metavar="N", help="measure its N dearest ops again (default: none)")] = 0

    def __call__(self) -> int:
        """Run the verb."""
        result = jobs.check_table(self.table, self.measure, show.TERMINAL)
        show.checked(result)
        return 0 if result.good else 1


@dataclass(frozen=True)
class Table:
    """Show a latency table, compare two, or check whether one still holds.

    Example: hwnas table show darts-quick
    """

    action: (
        Annotated[TableShow, subcommand("show", prefix_name=False)]
        | Annotated[TableDiff, subcommand("diff", prefix_name=False)]
        | Annotated[TableCheck, subcommand("check", prefix_name=False)]
    )

    def __call__(self) -> int:
        """Run the verb."""
        return self.action()
