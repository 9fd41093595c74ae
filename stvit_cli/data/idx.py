"""IDX files, as MNIST and Fashion-MNIST have them: images and labels as two arrays, plain or compressed with gzip.

N images of H x W pixels.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.class_names import check_names, read_class_names, require_model_names
from stvit_cli.data.file_listing import entries, require_folder
from stvit_cli.data.sampling import hold_out_of_classes
from stvit_cli.errors import UserError
from stvit_cli.utils.files import reason_of
from stvit_cli.utils.text import first_few, printable

_NAME = re.compile(
    r"(?P<split>train|t10k|test|val)[-._]?(?P<what>images|labels)[-._]?idx[13]([-._]?ubyte)?(?P<gz>\.gz)?", re.IGNORECASE
)
_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x09: np.dtype("i1"), 0x0B: np.dtype(">i2"), 0x0C: np.dtype(">i4")}
"""The type byte of the header; floating-point numbers are no images and no labels."""

SYNONYMS = {"test": "t10k", "validation": "val"}
MAX_BYTES = 1 << 34
FASHION_MNIST = (
    "Its four files: Debian's package dataset-fashion-mnist, or github.com/zalandoresearch/fashion-mnist; then data.dir=DIR."
)
LAYOUT = "Expected train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or with .gz, and the same with t10k."


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array of an IDX file; a plain one is mapped into memory, so that processes share it.

    Args:
        path: the file; compressed if its name ends in .gz.

    Returns:
        The array, in the byte order and shape of the file.

    Raises:
        UserError: it cannot be read, is no IDX file, or is shorter or longer than its header says.
    """
    shown = printable(str(path))
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                content = np.frombuffer(file.read(MAX_BYTES), dtype=np.uint8)
        else:
            content = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{shown} cannot be read: {reason_of(error)}.") from None
    header = content[:4].tolist()
    if len(header) < 4 or header[:2] != [0, 0] or header[2] not in _TYPES or not 1 <= header[3] <= 4:
        raise UserError(f"{shown} is no IDX file: it begins with {bytes(header).hex(' ') or 'nothing'}.")
    dtype, start = _TYPES[header[2]], 4 + 4 * header[3]
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis].tobytes(), "big") for axis in range(header[3]))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise UserError(
            f"{shown} is damaged: {len(content)} bytes, but its header says {expected} ({' x '.join(map(str, shape))})."
        )
    array: NDArray[Any] = content[start:].view(dtype).reshape(shape)
    return array


class IdxImages:
    """Some grey images of a pair of IDX files.

    Args:
        class_names: the names of the labels 0, 1, ...
        arrays: images (N, H, W) and labels (N,).
        file: of the images, for names.
        chosen: the images to keep, by their position in the file.
        notes: remarks for the user.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        arrays: tuple[NDArray[np.uint8], NDArray[np.int64]],
        file: Path,
        chosen: NDArray[np.int64],
        notes: Sequence[str] = (),
    ) -> None:
        self.class_names, self.notes, self.file = tuple(class_names), tuple(notes), file
        self._images, self._labels = arrays
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def path(self, index: int) -> str:
        """Return a name: the file, and the position in it."""
        return f"{self.file}:{self._chosen[index]}"

    def relative_path(self, index: int) -> str:
        """Return the name within the folder of the data set."""
        return f"{self.file.name}:{self._chosen[index]}"

    def target(self, index: int) -> int:
        return int(self._labels[self._chosen[index]])

    def open(self, index: int) -> Image.Image:
        """Return the image in mode RGB."""
        return Image.fromarray(np.asarray(self._images[self._chosen[index]])).convert("RGB")

    def fingerprint(self) -> str:
        """Return a hash of the classes, the labels and the choice; of the pixels, of the first and last image."""
        total = hashlib.blake2b(json.dumps([self.class_names, self._images.shape]).encode(), digest_size=16)
        for part in (self._chosen, self._labels, self._images[:1], self._images[-1:]):
            total.update(np.ascontiguousarray(part).tobytes())
        return total.hexdigest()


def find_idx_images(
    folder: str | Path | None,
    val_fraction: float = 0.2,
    *,
    train_split: str = "train",
    val_split: str | None = None,
    test_split: str | None = None,
    class_names_file: str | None = None,
    names: Sequence[str] = (),
) -> tuple[IdxImages, IdxImages]:
    """Return the training and the validation images of a folder with IDX files.

    Args:
        folder: ``data.dir``.
        val_fraction: part of each class of the training files that is held out for validation, where ``val_split`` is None.
        train_split: train, t10k (test): the files to train on.
        val_split: the files to evaluate on, such as t10k. None: a part of the training files, so that no choice, such as that of
            the best epoch, is made on the test files.
        test_split: files of which nothing is read here, see `find_idx_test_images`. None: a note says that there may be some.
        class_names_file: see `read_class_names`; None: ``names``, or the numbers of the labels.
        names: of the classes.

    Raises:
        UserError: the files are missing or damaged, or do not belong together.
    """
    root = _root(folder)
    file, arrays = _pair(root, train_split)
    class_names = _names(class_names_file, folder, arrays[1], names)
    everything = np.arange(len(arrays[1]))
    if val_split is not None:
        val_file, val_arrays = _pair(root, val_split)
        if not (class_names_file or names):
            class_names = _names(None, folder, np.concatenate([arrays[1], val_arrays[1]]))
        _require_known(val_file, val_arrays[1], class_names)
        notes = [f"the evaluation is on {val_file.name} (data.val_split={val_split})."]
        return (
            IdxImages(class_names, arrays, file, everything, notes),
            IdxImages(class_names, val_arrays, val_file, np.arange(len(val_arrays[1]))),
        )
    if val_fraction == 0:
        raise UserError("data.val_fraction is 0, so that no image is left for the validation. Give it, or data.val_split=t10k.")
    chosen = hold_out_of_classes([str(number) for number in everything.tolist()], arrays[1], val_fraction)
    hint = "" if test_split is not None else "; data.test_split=t10k evaluates the best weights on the test files, once"
    notes = [f"{int(chosen.sum())} of the {len(everything)} images of {file.name} are held out for validation{hint}."]
    return IdxImages(class_names, arrays, file, everything[~chosen], notes), IdxImages(
        class_names, arrays, file, everything[chosen]
    )


def find_idx_eval_images(
    folder: str | Path | None,
    val_fraction: float = 0.2,
    *,
    train_split: str = "train",
    val_split: str | None = None,
    test_split: str | None = None,
    class_names_file: str | None = None,
    names: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    all_images: bool = False,
) -> IdxImages:
    """Return the images to evaluate on; arguments and errors are those of `find_idx_images`.

    Args:
        folder: see there.
        val_fraction: see there.
        train_split: see there.
        val_split: see there.
        test_split: see there.
        class_names_file: see there.
        names: see there.
        class_names: the model's classes, which must be those of the files. None: the files' own.
        all_images: return all images of the training files in place of the held-out part.
    """
    splits: dict[str, Any] = {"train_split": train_split, "val_split": val_split, "test_split": test_split}
    if all_images and val_split is None:
        splits["val_split"] = train_split
    named: dict[str, Any] = {"class_names_file": class_names_file, "names": names}
    images = find_idx_images(folder, val_fraction, **splits, **named)[1]
    if class_names is not None:
        images.class_names = require_model_names(images.class_names, class_names, printable(str(images.file)))
    return images


def find_idx_test_images(
    folder: str | Path | None, test_split: str, class_names: Sequence[str], used_splits: Sequence[str]
) -> IdxImages:
    """Return the test images of a folder with IDX files.

    Args:
        folder: ``data.dir``.
        test_split: t10k (test), or another split.
        class_names: of the training images.
        used_splits: those that the run trains on or chooses by.

    Raises:
        UserError: as `find_idx_images`; also where it is one of the ``used_splits``, or has a class that is not trained on.
    """
    if _same(test_split) in map(_same, used_splits):
        raise UserError(
            f"data.test_split: {printable(test_split)} is trained on or chosen by, so that it is no test set. "
            "Give other files, or data.test_split=null."
        )
    file, arrays = _pair(_root(folder), test_split)
    _require_known(file, arrays[1], class_names)
    return IdxImages(class_names, arrays, file, np.arange(len(arrays[1])))


def _require_known(file: Path, labels: NDArray[np.int64], class_names: Sequence[str]) -> None:
    if labels.max() >= len(class_names):
        raise UserError(f"{printable(str(file))}: its labels go to {labels.max()}, but there are {len(class_names)} classes.")


def _root(folder: str | Path | None) -> Path:
    """Return ``data.dir``. Raises UserError where there is no such folder; of Fashion-MNIST it says where the files come from."""
    try:
        return require_folder(folder, "IDX files", LAYOUT)
    except UserError as error:
        if folder is not None and "fashion" in Path(folder).name.casefold() and not Path(folder).expanduser().exists():
            raise UserError(f"{error}\n{FASHION_MNIST}") from None
        raise


def _same(split: str) -> str:
    """Return one name for all names of a split."""
    return SYNONYMS.get(split.casefold(), split.casefold())


def _pair(root: Path, split: str) -> tuple[Path, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Return the file of the images of a split, and its images and labels."""
    wanted = _same(split)
    found: dict[str, list[Path]] = {"images": [], "labels": []}
    for entry in sorted(entries(root), key=lambda entry: entry.name):
        match = _NAME.fullmatch(entry.name)
        if match and _same(match["split"]) == wanted:
            found[match["what"].casefold()].append(Path(entry.path))
    for what, files in found.items():
        if not files:
            holds = first_few(sorted(entry.name for entry in entries(root))) or "nothing"
            raise UserError(f"{root}: there is no IDX file of the {what} of {printable(split)}. It holds: {holds}.\n{LAYOUT}")
    images_file, labels_file = (sorted(files, key=lambda path: path.suffix == ".gz")[0] for files in found.values())
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.ndim != 3 or images.dtype != np.uint8 or 0 in images.shape:
        raise UserError(
            f"{printable(str(images_file))}: an array of {images.shape}, {images.dtype}; expected images of (N, H, W), bytes."
        )
    if labels.ndim != 1 or len(labels) != len(images):
        raise UserError(
            f"{printable(str(labels_file))} has {len(labels)} labels, but {images_file.name} has {len(images)} images."
        )
    numbers = labels.astype(np.int64)
    if numbers.min() < 0 or numbers.max() > 65535:
        raise UserError(f"{printable(str(labels_file))}: labels from {numbers.min()} to {numbers.max()}; expected 0, 1, ...")
    return images_file, (images, numbers)


def _names(
    class_names_file: str | None, folder: str | Path | None, labels: NDArray[np.int64], names: Sequence[str] = ()
) -> tuple[str, ...]:
    num_classes = int(labels.max()) + 1
    if names and len(names) < num_classes:
        raise UserError(f"data.class_names: found {len(names)} names, but the labels go to {num_classes - 1}.")
    if names:
        return tuple(names)
    if class_names_file is None:
        return tuple(str(number) for number in range(num_classes))
    return check_names(read_class_names(class_names_file, folder), num_classes, class_names_file)
