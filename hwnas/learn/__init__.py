"""Learning: the losses of the tasks, and the training of a derived network."""

from hwnas.learn.losses import Batch, task_loss, tensors
from hwnas.learn.settings import TrainConfig
from hwnas.learn.training import Training, evaluate, train

__all__ = ["Batch", "TrainConfig", "Training", "evaluate", "task_loss", "tensors", "train"]
