"""A run's numbers as they come: `log.jsonl`, a row per step, and TensorBoard's curves if it is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Log:
    """Writes the rows of one run.

    Args:
        folder: the run folder.
        done: steps that the run has behind it. Rows of later steps are dropped: a run may be stopped after a step was
            logged and before its checkpoint, and then those steps come again.
        steps_per_epoch: to tell the epoch of a step.
    """

    def __init__(self, folder: Path, done: int, steps_per_epoch: int) -> None:
        path = folder / "log.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            path.write_text("".join(f"{line}\n" for line in lines if _is_behind(line, done)), encoding="utf-8")
        self.steps_per_epoch = steps_per_epoch
        self.file = path.open("a", encoding="utf-8")
        self.curves = _tensorboard(folder, done)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.curves is not None:
            self.curves.close()

    def write(self, done: int, values: Mapping[str, float]) -> None:
        """Add one step."""
        row = {"step": done, "epoch": done / self.steps_per_epoch, **values}
        self.file.write(json.dumps({name: round(value, 6) for name, value in row.items()}) + "\n")
        self.file.flush()
        for name, value in row.items():
            if self.curves is not None and name != "step":
                self.curves.add_scalar(name, value, done)


def _is_behind(line: str, done: int) -> bool:
    """Whether a line of the log tells of a step that is done; the last one may be torn."""
    try:
        return bool(json.loads(line)["step"] <= done)
    except ValueError:
        return False


def _tensorboard(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done or None)
