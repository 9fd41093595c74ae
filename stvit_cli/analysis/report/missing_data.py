"""A stand-in for validation data that have moved, where the predictions of them are kept: their metrics are worth showing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from torch.utils.data import Dataset

from stvit_cli.errors import UserError
from stvit_cli.tasks.base import Batch, Evaluator


class MissingImages(Dataset[Any]):
    """As many images as were predicted, with their names; whatever else is asked of them says why they are not there.

    Args:
        names: of the images.
        reason: why they cannot be read.
    """

    def __init__(self, names: Sequence[str], reason: UserError) -> None:
        self._names, self._reason = names, reason
        self.index, self.indices = SimpleNamespace(file_names=list(names)), np.arange(len(names))  # as `CocoImages` has them

    @property
    def images(self) -> MissingImages:
        """The images before transforms."""
        return self

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        """Return the name of an image."""
        return self._names[index]

    def __getitem__(self, index: int) -> NoReturn:
        raise self._reason

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: object, **__: object) -> NoReturn:
            raise self._reason

        return refuse


class MissingEvaluation:
    """See `MissingImages`.

    Args:
        name: of the task.
        names: of the images.
        reason: why they cannot be read.
    """

    def __init__(self, name: str, names: Sequence[str], reason: UserError) -> None:
        self.name, self.reason = name, reason
        self._set = MissingImages(names, reason)

    @property
    def val_set(self) -> Dataset[Any]:
        """The images."""
        return self._set

    def collate_eval(self, samples: list[Any]) -> Batch:
        """Raise the reason."""
        raise self.reason

    def evaluator(self) -> Evaluator:
        """Raise the reason."""
        raise self.reason

    def describe_eval(self, batch: Batch) -> list[str]:
        """Raise the reason."""
        raise self.reason

    def check_data(self) -> list[str]:
        """Raise the reason."""
        raise self.reason
