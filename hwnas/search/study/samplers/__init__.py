"""Samplers of studies, by their stable names: one line for each."""

from hwnas.search.study.samplers.base import Asking, Proposals, Proposer, Sampler
from hwnas.search.study.samplers.evolution import Evolution
from hwnas.search.study.samplers.foreign import NSGA2, TPE
from hwnas.search.study.samplers.near_best import NearBest
from hwnas.search.study.samplers.ppo import PPO
from hwnas.search.study.samplers.reinforce import Reinforce
from hwnas.search.study.samplers.uniform import Uniform

SAMPLERS: dict[str, type[Sampler]] = {
    "uniform": Uniform,
    "near-best": NearBest,
    "evolution": Evolution,
    "tpe": TPE,
    "nsga2": NSGA2,
    "reinforce": Reinforce,
    "ppo": PPO,
}

__all__ = [
    "NSGA2",
    "PPO",
    "SAMPLERS",
    "TPE",
    "Asking",
    "Evolution",
    "NearBest",
    "Proposals",
    "Proposer",
    "Reinforce",
    "Sampler",
    "Uniform",
]
