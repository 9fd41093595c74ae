"""The folders of a data set that are its splits: train, val, test, by any of their usual names. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stvit_cli.data.file_listing import folders_in, same_name
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few

Split = Literal["train", "val", "test"]

NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What the splits are called, in small or capital letters."""

SPLIT_OF: dict[str, Split] = {name: split for split, names in NAMES.items() for name in names}
"""The split that a name in small letters stands for."""

_SUFFIX = r"[-_ .]?(set|data|dataset|images|imgs|split|part|\d+)s?"
_TRAINING = re.compile(rf"train(ing)?{_SUFFIX}")
_SIMILAR = re.compile(rf"(train|training|val|valid|validation|test|testing|dev|eval|evaluation)({_SUFFIX})?")
"""Names that look like a split's: train_set, test2017."""

LAYOUT = "Expected a folder for each class, in train/ and val/ or side by side: cat/1.jpg, dog/2.jpg."


@dataclass(frozen=True)
class Splits:
    """The folders to train and to evaluate on, by name; both None where the folder is not divided."""

    train: str | None = None
    val: str | None = None
    """test/, where there is no val/."""
    left_out: str | None = None
    """test/, where there is a val/ too."""


def find_splits(root: Path, classes: Sequence[str] = ()) -> Splits:
    """Find the splits among the folders in ``root``.

    Args:
        root: the folder of the data set.
        classes: folders of these names are classes, whatever else they look like.

    Raises:
        UserError: a folder looks like a split and cannot be one, or two could be the same split.
    """
    known = {same_name(name) for name in classes}
    folders = [name for name in folders_in(root) if same_name(name) not in known]
    by_split = {split: [name for name in folders if name.casefold() in names] for split, names in NAMES.items()}
    for split, found in by_split.items():
        if len(found) > 1:
            raise UserError(f"{root} has {' and '.join(found)}: which of them is {split}/? Rename or remove the other.")
    train, val, test = (found[0] if found else None for found in by_split.values())
    if train is None and val is None and test is not None and len(folders) > 1:
        others = first_few([name for name in folders if name != test])
        raise UserError(
            f"{root} has {test}/ beside {others}: it looks like a split, but there is no train/.\n"
            f"If it is a class, give its folder another name, such as {test}_class.\n{LAYOUT}"
        )
    if train is None and val is None and test is None:
        _refuse_similar(root, folders)
    return Splits(train=train, val=val if val is not None else test, left_out=test if val is not None else None)


def _refuse_similar(root: Path, folders: Sequence[str]) -> None:
    """Raise where folders look like splits without having a split's name: taken for classes they would train nonsense."""
    if not any(_TRAINING.fullmatch(name.casefold()) for name in folders):
        return
    similar = [name for name in folders if _SIMILAR.fullmatch(name.casefold())]
    raise UserError(
        f"{root} has {first_few(similar)}: they look like splits, but a split is named train/ (or training/), "
        f"val/ (valid/, validation/) or test/.\nRename them.\n{LAYOUT}"
    )
