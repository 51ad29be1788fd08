"""Learning: the losses of the tasks, and the training of a derived network."""

from hwnas.learn.evaluation import Inference, evaluate
from hwnas.learn.losses import Batch, task_loss, tensors
from hwnas.learn.settings import TrainConfig
from hwnas.learn.training import Training, train

__all__ = ["Batch", "Inference", "TrainConfig", "Training", "evaluate", "task_loss", "tensors", "train"]
