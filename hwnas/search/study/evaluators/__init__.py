"""Evaluators of studies: heads on cached features, and short trainings end to end."""

from hwnas.search.study.evaluators.base import Evaluation, Evaluator, Outcome
from hwnas.search.study.evaluators.early_stop import EarlyStop
from hwnas.search.study.evaluators.features import HeadOnFeatures
from hwnas.search.study.evaluators.short import ShortTraining

__all__ = ["EarlyStop", "Evaluation", "Evaluator", "HeadOnFeatures", "Outcome", "ShortTraining"]
