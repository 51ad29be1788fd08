"""The work of each verb as a function: from a run and settings to a frozen result, without a word printed.

What is imported from here is loaded when it is asked for, so that this import takes no torch.

example: docs/example.py
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hwnas.progress import SILENT, Reporter

if TYPE_CHECKING:
    from hwnas.derived import Demands, Derived
    from hwnas.jobs.deriving import DeriveResult, DeriveSettings, derive, open_contest
    from hwnas.jobs.exporting import ExportResult, ExportSettings, export
    from hwnas.jobs.fronts import FrontSettings, front
    from hwnas.jobs.listing import list_all
    from hwnas.jobs.pricing import Network, Price, PriceSettings, find_network, price, price_network
    from hwnas.jobs.profiling import PlanSettings, ProfileResult, ProfileSettings, plan, profile
    from hwnas.jobs.searching import SearchResult, SearchSettings, search
    from hwnas.jobs.surveying import SurveyResult, SurveySettings, survey
    from hwnas.jobs.tables import check_table, diff_tables, find_table
    from hwnas.jobs.training import TrainResult, TrainSettings, train
    from hwnas.jobs.validation import Report, ValidateResult, ValidateSettings, validate
    from hwnas.learn.evaluation import Inference
    from hwnas.run import Run, classes_of

_HOMES = {
    "run": ("Run", "classes_of"),
    "derived": ("Demands", "Derived"),
    "learn.evaluation": ("Inference",),
    "jobs.deriving": ("DeriveResult", "DeriveSettings", "derive", "open_contest"),
    "jobs.exporting": ("ExportResult", "ExportSettings", "export"),
    "jobs.fronts": ("FrontSettings", "front"),
    "jobs.listing": ("list_all",),
    "jobs.pricing": ("Network", "Price", "PriceSettings", "find_network", "price", "price_network"),
    "jobs.profiling": ("PlanSettings", "ProfileResult", "ProfileSettings", "plan", "profile"),
    "jobs.searching": ("SearchResult", "SearchSettings", "search"),
    "jobs.surveying": ("SurveyResult", "SurveySettings", "survey"),
    "jobs.tables": ("check_table", "diff_tables", "find_table"),
    "jobs.training": ("TrainResult", "TrainSettings", "train"),
    "jobs.validation": ("Report", "ValidateResult", "ValidateSettings", "validate"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "SILENT",
    "Demands",
    "DeriveResult",
    "DeriveSettings",
    "Derived",
    "ExportResult",
    "ExportSettings",
    "FrontSettings",
    "Inference",
    "Network",
    "PlanSettings",
    "Price",
    "PriceSettings",
    "ProfileResult",
    "ProfileSettings",
    "Report",
    "Reporter",
    "Run",
    "SearchResult",
    "SearchSettings",
    "SurveyResult",
    "SurveySettings",
    "TrainResult",
    "TrainSettings",
    "ValidateResult",
    "ValidateSettings",
    "check_table",
    "classes_of",
    "derive",
    "diff_tables",
    "export",
    "find_network",
    "find_table",
    "front",
    "list_all",
    "open_contest",
    "plan",
    "price",
    "price_network",
    "profile",
    "search",
    "survey",
    "train",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hwnas.{_HOME[name]}"), name)
