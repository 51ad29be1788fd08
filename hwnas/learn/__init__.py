"""Learning: the losses of the tasks, and the training of a derived network."""

from hwnas.learn.evaluation import evaluate
from hwnas.learn.losses import Batch, task_loss, tensors
from hwnas.learn.training import TrainConfig, Training, train

__all__ = ["Batch", "TrainConfig", "Training", "evaluate", "task_loss", "tensors", "train"]
