"""Images and their label maps: found in two folders or in one, paired by name, and read.

H W rows and columns of an image.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.file_listing import Listing, left_out_note, list_files, require_whole_links, same_name
from stvit_cli.data.held_out import group_images, held_out_note, hold_out_groups
from stvit_cli.data.images import ENDINGS, open_image
from stvit_cli.data.label_maps import open_label_map
from stvit_cli.data.segmentation_transforms import IGNORED, Labels
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, printable

NUM_NAMED = 3
"""Most files that a message names of those with the same problem."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and their label maps, by index. Label maps hold numbers, `labels` are classes 0, 1, ...

    See `find_pairs` for the attributes.
    """

    image_dir: Path
    map_dir: Path
    images: tuple[Path, ...]
    maps: tuple[Path, ...]
    class_names: tuple[str, ...]
    ignore_index: int
    reduce_zero_label: bool
    label_values: tuple[int, ...] | None
    notes: tuple[str, ...] = ()
    """Remarks on the folders for the user, such as files that are left out."""

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return str(self.images[index])

    def relative_path(self, index: int) -> str:
        """Return the path of an image below the folder of the images."""
        return self.images[index].relative_to(self.image_dir).as_posix()

    def open(self, index: int) -> Image.Image:
        """Return the image in mode RGB. Raises UserError as `open_image` does."""
        return open_image(self.images[index])

    def numbers(self, index: int, size: tuple[int, int] | None = None) -> Labels:
        """Return the numbers in a label map, (H, W).

        Args:
            index: of the image.
            size: width and height of the image; None: the map's size is not checked.

        Raises:
            UserError: as `labels` does.
        """
        return self._read(index, size)[0]

    def labels(self, index: int, size: tuple[int, int]) -> Labels:
        """Return the class of each pixel (H, W), `IGNORED` where it has none.

        Args:
            index: of the image.
            size: width and height of the image.

        Raises:
            UserError: the map cannot be read, has another size, or holds a number that is no class.
        """
        return self._read(index, size)[1]

    def _read(self, index: int, size: tuple[int, int] | None) -> tuple[Labels, Labels]:
        """Return the numbers and the classes of a label map."""
        path = self.maps[index]
        numbers = open_label_map(path)
        if size is not None and numbers.shape != size[::-1]:
            raise UserError(
                f"{printable(str(path))}: the label map has {numbers.shape[1]} x {numbers.shape[0]} pixels, "
                f"its image {printable(str(self.images[index]))} {size[0]} x {size[1]}."
            )
        return numbers, self._classes(path, numbers)

    def fingerprint(self) -> str:
        """Return a hash of the class names and the paths of images and maps, in order."""
        total = hashlib.blake2b(json.dumps(self.class_names).encode(), digest_size=16)
        for folder, paths in ((self.image_dir, self.images), (self.map_dir, self.maps)):
            start = len(os.path.join(folder, ""))
            for path in paths:
                total.update(os.fsencode(str(path)[start:]) + b"\0")
        return total.hexdigest()

    def hold_out(self, fraction: float, group_by: str | None = None) -> tuple[LabelledImages, LabelledImages]:
        """Return the images to train on, and those that are held out for validation, by the names of the images.

        Args:
            fraction: ``data.val_fraction``.
            group_by: see `held_out.group_images`.

        Raises:
            UserError: none can be held out, or ``group_by`` finds no group.
        """
        if fraction == 0:
            raise UserError(
                "data.val_fraction is 0 and segmentation.val_images is null: "
                f"no image of {self.image_dir} is left for the validation."
            )
        names = [path.relative_to(self.image_dir).as_posix() for path in self.images]
        groups = group_images(names, group_by)
        if len(set(groups)) < 2:
            what = "one image" if len(self) == 1 else "one group of images by data.group_by"
            raise UserError(f"{self.image_dir} has {what}, so none can be held out to evaluate on: set segmentation.val_images.")
        held_out = hold_out_groups(groups, None, fraction)
        note = held_out_note(str(self.image_dir), held_out, groups, group_by)
        return self._where(~held_out, (*self.notes, note)), self._where(held_out, ())

    def _where(self, chosen: NDArray[np.bool_], notes: tuple[str, ...]) -> LabelledImages:
        images, maps = (tuple(itertools.compress(paths, chosen.tolist())) for paths in (self.images, self.maps))
        return replace(self, images=images, maps=maps, notes=notes)

    @property
    def class_numbers(self) -> tuple[int, ...]:
        """The number of each class in the label maps."""
        return class_numbers(len(self.class_names), self.reduce_zero_label, self.label_values)

    @property
    def ignored_numbers(self) -> frozenset[int]:
        """The numbers whose pixels are ignored."""
        ignored = frozenset({self.ignore_index, 0} if self.reduce_zero_label else {self.ignore_index})
        return ignored if self.label_values is None else ignored - set(self.label_values)

    def _classes(self, path: Path, numbers: Labels) -> Labels:
        """Map the numbers of a label map to classes 0, 1, ..., and ignored numbers to `IGNORED`."""
        ignored = np.zeros(numbers.shape, dtype=np.bool_)
        for number in self.ignored_numbers:
            ignored |= numbers == number
        if self.label_values is None:
            classes = numbers - int(self.reduce_zero_label)  # 32 bits with a sign: nothing wraps around
            wrong = ((classes < 0) | (classes >= len(self.class_names))) & ~ignored
        else:
            classes = np.full_like(numbers, IGNORED)
            for label, number in enumerate(self.label_values):
                classes[numbers == number] = label
            wrong = (classes == IGNORED) & ~ignored
        if wrong.any():
            row, column = (int(position) for position in np.argwhere(wrong)[0])
            raise UserError(
                f"{printable(str(path))}: the label map has {numbers[row, column]} in row {row}, column {column}; "
                f"expected {self._expected()} "
                f"for the {len(self.class_names)} names of segmentation.class_names, "
                f"or {' and '.join(map(str, sorted(self.ignored_numbers)))}, which are ignored."
                f"\n{self._remedy(int(numbers[wrong].max()))}"
            )
        return np.where(ignored, IGNORED, classes)

    def _expected(self) -> str:
        if self.label_values is not None:
            return first_few([str(number) for number in self.label_values], 10)
        return f"{self.class_numbers[0]} to {self.class_numbers[-1]}"

    def _remedy(self, largest: int) -> str:
        """Return the recipe key that most likely fixes numbers that are no class."""
        if self.label_values is None and largest == len(self.class_names) and not self.reduce_zero_label:
            return "If the classes count from 1 and 0 is to be ignored: segmentation.reduce_zero_label=true"
        if largest in (255, 65535):
            return f"If {largest} is to be ignored: segmentation.ignore_index={largest}"
        return "segmentation.class_names needs a name for each number, in the order of the numbers."


def class_numbers(num_classes: int, reduce_zero_label: bool, label_values: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the number of each class in label maps.

    >>> class_numbers(3, reduce_zero_label=True, label_values=None)
    (1, 2, 3)
    """
    first = int(reduce_zero_label)
    return label_values or tuple(range(first, first + num_classes))


def find_pairs(
    root: Path,
    images: str,
    maps: str,
    *,
    class_names: tuple[str, ...],
    image_suffix: str | None = None,
    map_suffix: str = ".png",
    reduce_zero_label: bool = False,
    label_values: tuple[int, ...] | None = None,
    ignore_index: int = 255,
) -> LabelledImages:
    """Pair the images in and below ``root / images`` with the label maps at the same relative paths below ``root / maps``.

    Where both are the same folder, a file that is another image's map is no image. The extension of a map may be in capital
    letters, and its name in another Unicode normalization.

    Args:
        root: ``data.dir``.
        images: folder of the images, relative to ``root``.
        maps: folder of the label maps, relative to ``root``.
        class_names: in the order of their numbers.
        image_suffix: end of an image's name that ``map_suffix`` replaces; None: the extension of any image.
        map_suffix: end of a label map's name.
        reduce_zero_label: 0 is ignored and the classes count from 1.
        label_values: the number of each class; None: 0, 1, ..., or from 1 with ``reduce_zero_label``.
        ignore_index: number that is ignored, unless it is in ``label_values``.

    Raises:
        UserError: a folder is missing, there is no image, an image has no map, or two have the same.
    """
    image_dir, map_dir = (_folder(root, name) for name in (images, maps))
    suffixes = _Suffixes(image_suffix, map_suffix)
    endings = ENDINGS if image_suffix is None else (image_suffix.lower(),)
    listing, in_map_dir = list_files(image_dir, endings=endings), list_files(map_dir, endings=None)
    require_whole_links(image_dir, listing.broken_links)
    known = {suffixes.key(path): path for path in sorted(in_map_dir.paths + in_map_dir.broken_links, reverse=True)}
    exact = set(in_map_dir.paths)
    pairs = {}
    for path in sorted(listing.paths, key=lambda path: path.split("/")):
        expected = suffixes.map_name(path)
        pairs[path] = expected if expected in exact else known.get(suffixes.key(expected))
    pairs = _without_maps(image_dir, map_dir, pairs)
    if not pairs:
        expected = f"names that end in {image_suffix}" if image_suffix else "files such as *.jpg or *.png"
        raise UserError(f"{image_dir}: no image in this folder; expected {expected}.")
    found = {image: label_map for image, label_map in pairs.items() if label_map is not None}
    if len(found) < len(pairs):
        _refuse_missing(image_dir, map_dir, pairs, in_map_dir, suffixes)
    require_whole_links(map_dir, sorted(set(found.values()) & set(in_map_dir.broken_links)))
    _refuse_shared_maps(image_dir, found)
    return LabelledImages(
        image_dir=image_dir,
        map_dir=map_dir,
        images=tuple(image_dir / image for image in found),
        maps=tuple(map_dir / label_map for label_map in found.values()),
        class_names=class_names,
        ignore_index=ignore_index,
        reduce_zero_label=reduce_zero_label,
        label_values=label_values,
        # Where image_suffix is given, files with other endings are left out on purpose.
        notes=tuple(f"{image_dir}: {note}" for note in left_out_note(listing.other_endings) if image_suffix is None),
    )


class _Suffixes(NamedTuple):
    """How the name of a label map follows from that of its image."""

    image: str | None
    map: str

    def key(self, map_path: str) -> str:
        """Return the path of a map with its suffix in small letters and its name normalized."""
        start = len(map_path) - len(self.map)
        path, end = map_path[:start], map_path[start:]
        return same_name(path + end.lower() if end.lower() == self.map.lower() else map_path)

    def map_name(self, image: str) -> str:
        end = os.path.splitext(image)[1] if self.image is None else self.image
        return image[: len(image) - len(end)] + self.map


def _without_maps(image_dir: Path, map_dir: Path, pairs: dict[str, str | None]) -> dict[str, str | None]:
    """Remove images that are another image's map; an image that would be its own map has none."""
    own, of_maps = (str(folder.resolve()) for folder in (image_dir, map_dir))
    if not f"{of_maps}/".startswith(f"{own}/") and not f"{own}/".startswith(f"{of_maps}/"):
        return pairs
    is_own = {image: label_map is not None and f"{own}/{image}" == f"{of_maps}/{label_map}" for image, label_map in pairs.items()}
    maps = {f"{of_maps}/{label_map}" for image, label_map in pairs.items() if label_map is not None and not is_own[image]}
    return {image: None if is_own[image] else label_map for image, label_map in pairs.items() if f"{own}/{image}" not in maps}


def _refuse_missing(
    image_dir: Path, map_dir: Path, pairs: dict[str, str | None], in_map_dir: Listing, suffixes: _Suffixes
) -> None:
    missing = [image for image, label_map in pairs.items() if label_map is None]
    names = [suffixes.map_name(image) for image in missing[:NUM_NAMED]]
    more = ", ..." if len(missing) > NUM_NAMED else ""
    there = [os.path.basename(path) for path in in_map_dir.paths[:1000]]
    raise UserError(
        f"{map_dir}: {len(missing)} of {len(pairs)} images have no label map here: expected {first_few(names)}{more}\n"
        f"for {printable(str(image_dir / missing[0]))}.{did_you_mean(os.path.basename(names[0]), there)} "
        "Set segmentation.image_suffix and segmentation.map_suffix to how the names end."
    )


def _refuse_shared_maps(image_dir: Path, pairs: dict[str, str]) -> None:
    images: dict[str, str] = {}
    for image, label_map in pairs.items():
        other = images.setdefault(label_map, image)
        if other != image:
            raise UserError(
                f"{image_dir}: {first_few([other])} and {first_few([image])} have the same label map, {first_few([label_map])}.\n"
                f"Remove one of them, or set how the images' names end: segmentation.image_suffix={os.path.splitext(other)[1]}"
            )


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        siblings = [str(entry.relative_to(root)) for entry in root.glob("*/*") if entry.is_dir()]
        raise UserError(
            f"data.dir is {root}, which has no folder {name}.{did_you_mean(name, siblings)}\n"
            "Expected images/training, annotations/training, images/validation and annotations/validation (ADE20K), "
            "or the folders that segmentation.train_images, train_maps, val_images and val_maps name."
        )
    return folder
