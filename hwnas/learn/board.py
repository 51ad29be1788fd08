"""TensorBoard beside the step log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwnas.optional import require
from hwnas.steplog import StepLog


class BoardLog(StepLog):
    """A step log whose numbers go to TensorBoard as well."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Open the folder that TensorBoard reads.

        Raises:
            MissingExtra: If it is not installed.
        """
        super().__init__(path)
        require("tensorboard", "tensorboard")  # torch's own message does not say what to install
        self._folder, self._writer = folder, require("torch.utils.tensorboard", "search")
        self._board: Any = None

    def start(self, step: int) -> None:
        """Begin at a step: what TensorBoard has of later ones, from before a kill, is dropped."""
        super().start(step)
        self._board = self._writer.SummaryWriter(str(self._folder), purge_step=step)

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Add the numbers of a step."""
        super().append(metrics)
        for name, value in metrics.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        """Write what is buffered."""
        if self._board is not None:
            self._board.close()
