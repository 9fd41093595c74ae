"""Some classes of a model, matched by name, and the images of these classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.file_listing import same_name
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few

if TYPE_CHECKING:
    from stvit_cli.data.classification import Images


@dataclass(frozen=True)
class ClassSubset:
    """Classes that a model has, of a list of classes.

    Attributes:
        names: of the classes, (S,), in the order of the list.
        columns: the index of each among the classes of the model, (S,).
        lacking: names of the list that the model does not have.
    """

    names: tuple[str, ...]
    columns: NDArray[np.int64]
    lacking: tuple[str, ...] = ()


def match_classes(names: Sequence[str], model_names: Sequence[str], what: str = "eval.subset") -> ClassSubset:
    """Find classes of a list among those of a model, by name, in any spelling of Unicode.

    Args:
        names: of the list.
        model_names: of the model.
        what: the list, for messages.

    Raises:
        UserError: the model has fewer than two of the classes.

    Example:
        >>> found = match_classes(["dog", "emu", "cat"], ["ant", "cat", "dog"])
        >>> found.names, found.columns, found.lacking
        (('dog', 'cat'), array([2, 1]), ('emu',))
    """
    position = {same_name(name): index for index, name in enumerate(model_names)}
    own = [name for name in names if same_name(name) in position]
    lacking = tuple(name for name in names if same_name(name) not in position)
    if len(own) < 2:
        guess = did_you_mean(lacking[0], model_names) if lacking else ""
        raise UserError(
            f"{what}: of its {len(names)} classes ({first_few(names)}) the model has {len(own)}; at least two are needed.\n"
            f"The model's {len(model_names)} classes: {first_few(model_names)}.{guess}"
        )
    return ClassSubset(tuple(own), np.array([position[same_name(name)] for name in own], dtype=np.int64), lacking)


class SubsetImages:
    """The images of some classes; targets count along these. See `data.classification.Images`.

    Args:
        images: with one class each.
        subset: of their classes.
    """

    def __init__(self, images: Images, subset: ClassSubset) -> None:
        from stvit_cli.data.classification import all_targets

        self.images, self.class_names, self.notes = images, subset.names, images.notes
        new = np.full(len(images.class_names), -1, dtype=np.int64)
        position = {same_name(name): index for index, name in enumerate(images.class_names)}
        for target, name in enumerate(subset.names):
            if same_name(name) in position:
                new[position[same_name(name)]] = target
        targets = new[all_targets(images)]
        self._indices = np.flatnonzero(targets >= 0)
        self._targets = targets[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def path(self, index: int) -> str:
        return self.images.path(int(self._indices[index]))

    def relative_path(self, index: int) -> str:
        return self.images.relative_path(int(self._indices[index]))

    def target(self, index: int) -> int:
        return int(self._targets[index])

    def open(self, index: int) -> Image.Image:
        return self.images.open(int(self._indices[index]))
