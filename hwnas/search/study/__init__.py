"""Searches by trials: samplers, evaluators, and the study between them. Optuna is imported when one begins."""

from hwnas.search.study.choices import Choices, Tried
from hwnas.search.study.evaluators import EarlyStop, Evaluation, Evaluator, HeadOnFeatures, Outcome, ShortTraining
from hwnas.search.study.samplers import (
    NSGA2,
    PPO,
    SAMPLERS,
    TPE,
    Asking,
    Evolution,
    NearBest,
    Proposals,
    Reinforce,
    Sampler,
    Uniform,
)
from hwnas.search.study.strategy import Trials

__all__ = [
    "NSGA2",
    "PPO",
    "SAMPLERS",
    "TPE",
    "Asking",
    "Choices",
    "EarlyStop",
    "Evaluation",
    "Evaluator",
    "Evolution",
    "HeadOnFeatures",
    "NearBest",
    "Outcome",
    "Proposals",
    "Reinforce",
    "Sampler",
    "ShortTraining",
    "Trials",
    "Tried",
    "Uniform",
]
