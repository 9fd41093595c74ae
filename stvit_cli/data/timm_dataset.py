"""Data sets by the names that timm gives them: torchvision's (``torch/cifar10``) and Hugging Face's (``hfds/cifar10``).

They are opened by ``timm.data.create_dataset``. Only those whose images are read by their number serve: a sample of a run is a
function of its number, so that the run can resume anywhere and be divided among processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_dataset

from stvit_cli.data.class_names import check_names, read_class_names
from stvit_cli.data.images import UnreadableImageError, decode_image, open_image
from stvit_cli.data.sampling import hold_out_of_classes
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.text import first_few, first_line, printable, shortened

NEEDED = {"hfds": "datasets"}
"""The library that data sets of a prefix need beside timm and torchvision."""

ITERABLE = ("wds", "tfds", "hfids")
"""Prefixes of data sets that can only be read from their beginning to their end."""

EXAMPLES = "torch/cifar10, torch/fashion_mnist, torch/image_folder or hfds/OWNER/NAME"


class TimmImages:
    """Some images of one of timm's data sets.

    Args:
        dataset: what ``create_dataset`` returned.
        name: of the data set and its split, for messages.
        class_names: in the order of the targets.
        targets: the class of every image of the data set.
        chosen: the images to keep, by their number.
        notes: remarks for the user.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        class_names: Sequence[str],
        targets: NDArray[np.int64],
        chosen: NDArray[np.int64],
        notes: Sequence[str] = (),
    ) -> None:
        self.class_names, self.notes = tuple(class_names), tuple(notes)
        self._dataset, self._name, self._targets, self._chosen = dataset, name, targets, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def path(self, index: int) -> str:
        """Return a name: the data set, its split and the number of the image."""
        return f"{self._name}:{self._chosen[index]}"

    def relative_path(self, index: int) -> str:
        """Return the same name: there are no files."""
        return self.path(index)

    def target(self, index: int) -> int:
        return int(self._targets[self._chosen[index]])

    def open(self, index: int) -> Image.Image:
        """Return the image in mode RGB.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        number = int(self._chosen[index])
        reader = getattr(self._dataset, "reader", None)
        if reader is not None:
            with reader[number][0] as file:
                return decode_image(file.read(), self.path(index))
        try:
            image = self._dataset[number][0]
        except (OSError, ValueError) as error:
            raise UnreadableImageError(f"{self.path(index)}: {shortened(str(error))}.") from None
        return open_image(image)

    def fingerprint(self) -> str:
        """Return a hash of the data set's name, the classes, the targets and the choice."""
        total = hashlib.blake2b(json.dumps([self._name, self.class_names]).encode(), digest_size=16)
        for part in (self._chosen, self._targets):
            total.update(part.astype("<i8").tobytes())
        return total.hexdigest()


def find_timm_images(
    name: str | None,
    folder: str | Path | None,
    val_fraction: float = 0.2,
    *,
    train_split: str = "train",
    val_split: str | None = None,
    test_split: str | None = None,
    class_names_file: str | None = None,
) -> tuple[TimmImages, TimmImages]:
    """Return the training and the validation images of one of timm's data sets.

    Args:
        name: ``data.name``, such as ``torch/cifar10``.
        folder: ``data.dir``: where the data set is; for hfds the cache of the library.
        val_fraction: part of each class of the training split that is held out, where ``val_split`` is None.
        train_split: the split to train on, by its name there.
        val_split: the split to evaluate on; None: a part of the training split.
        test_split: of which nothing is read here, see `find_timm_test_images`. None: a note says that there may be one.
        class_names_file: see `read_class_names`; None: the data set's own names.

    Raises:
        UserError: no such data set, a library that it needs is not installed, or it cannot be read by number.
    """
    dataset, targets, names = _opened(name, folder, train_split)
    if class_names_file is not None:
        names = check_names(read_class_names(class_names_file, folder), len(names), class_names_file)
    shown, everything = f"{name} {train_split}", np.arange(len(targets))
    if val_split is not None:
        other, other_targets, other_names = _opened(name, folder, val_split)
        if len(other_names) != len(names):
            raise UserError(f"data.name {name}: {train_split} has {len(names)} classes, {val_split} {len(other_names)}.")
        val = TimmImages(other, f"{name} {val_split}", names, other_targets, np.arange(len(other_targets)))
        return TimmImages(dataset, shown, names, targets, everything), val
    if val_fraction == 0:
        raise UserError("data.val_fraction is 0, so that no image is left for the validation. Give it, or data.val_split=SPLIT.")
    chosen = hold_out_of_classes([str(number) for number in everything.tolist()], targets, val_fraction)
    hint = "" if test_split is not None else "; data.val_split=SPLIT evaluates on another"
    notes = [f"{int(chosen.sum())} of the {len(targets)} images of {shown} are held out{hint}."]
    held_out = TimmImages(dataset, shown, names, targets, everything[chosen])
    return TimmImages(dataset, shown, names, targets, everything[~chosen], notes), held_out


def find_timm_test_images(
    name: str | None, folder: str | Path | None, test_split: str, class_names: Sequence[str], used_splits: Sequence[str]
) -> TimmImages:
    """Return the test images of one of timm's data sets.

    Args:
        name: ``data.name``.
        folder: ``data.dir``.
        test_split: the split, by its name there.
        class_names: of the training images.
        used_splits: those that the run trains on or chooses by.

    Raises:
        UserError: as `find_timm_images`; also where it is one of the ``used_splits``.
    """
    if test_split in used_splits:
        raise UserError(
            f"data.test_split: {printable(test_split)} is trained on or chosen by, so that it is no test set. "
            "Give another split, or data.test_split=null."
        )
    dataset, targets, names = _opened(name, folder, test_split)
    if len(names) > len(class_names):
        raise UserError(f"data.name {name}: {len(class_names)} classes are trained on, but {test_split} has {len(names)}.")
    return TimmImages(dataset, f"{name} {test_split}", class_names, targets, np.arange(len(targets)))


def _opened(name: str | None, folder: str | Path | None, split: str) -> tuple[Any, NDArray[np.int64], tuple[str, ...]]:
    """Return a split of a data set, its targets and the names of its classes."""
    prefix, _, rest = (name or "").partition("/")
    prefix = prefix.lower()
    if name is None or not rest:
        raise UserError(f"data.name: found {name}, expected the name of a data set with its prefix, such as {EXAMPLES}.")
    if prefix in ITERABLE:
        raise UserError(
            f"data.name: found {printable(name)}: data sets of {prefix}/ can only be read from beginning to end; a run reads\n"
            "its images by number. Use one of torch/ or hfds/, or write the images into folders by class."
        )
    if prefix not in ("torch", "hfds"):
        raise UserError(
            f"data.name: found {printable(name)}, expected a name that begins with torch/ or hfds/, such as {EXAMPLES}."
        )
    if prefix in NEEDED and not is_installed(NEEDED[prefix]):
        raise UserError(f"data.name {printable(name)} needs {NEEDED[prefix]}: pip install 'stvit[datasets]'")
    if prefix == "torch" and folder is None:
        raise UserError("data.dir is not set. Set it to the folder of the data set: data.dir=DIR.")
    root = None if folder is None else str(Path(folder).expanduser())
    try:
        dataset = create_dataset(name, root=root, split=split)
        targets, names = _targets(dataset), _class_names(dataset)
    except UserError:
        raise
    except Exception as error:  # of torchvision, of datasets and of what they call: no common class
        where = "" if root is None else f" in {printable(root)}"
        reason = shortened(first_line(error), 200)
        raise UserError(f"data.name {printable(name)}, split {printable(split)}: cannot be opened{where}: {reason}") from error
    if not len(targets):
        raise UserError(f"data.name {printable(name)}, split {printable(split)}: there are no images.")
    num_classes = int(targets.max()) + 1
    if targets.min() < 0 or (names and num_classes > len(names)):
        raise UserError(
            f"data.name {printable(name)}: labels from {targets.min()} to {targets.max()}, classes: {first_few(names)}."
        )
    return dataset, targets, names or tuple(str(number) for number in range(num_classes))


def _targets(dataset: Any) -> NDArray[np.int64]:
    reader = getattr(dataset, "reader", None)
    if reader is not None:
        column = reader.dataset.with_format("numpy", columns=[reader.label_key])
        return np.asarray(column[:][reader.label_key], dtype=np.int64)
    return np.asarray(dataset.targets, dtype=np.int64)


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names of the classes, empty where the data set has none."""
    source = getattr(dataset, "reader", dataset)
    positions = getattr(source, "class_to_idx", None) or {}
    if sorted(positions.values()) == list(range(len(positions))) and positions:
        return tuple(str(name) for name, _ in sorted(positions.items(), key=lambda item: item[1]))
    return tuple(map(str, getattr(dataset, "classes", ())))
