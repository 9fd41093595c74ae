"""Pictures with label maps, laid out as ADE20K's or in any two folders: found, read and checked, each error with its file.

A label map is a grey or palette PNG of its picture's size, a class's number for each pixel. H W rows and columns of a picture, C
its channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stvit_cli.data.classification import open_or_replace
from stvit_cli.data.images import ENDINGS, open_image
from stvit_cli.data.loader import seeded
from stvit_cli.data.order import SampleKey, derive_seed
from stvit_cli.data.segmentation_transforms import IGNORED, Labels, TrainTransform, eval_transform
from stvit_cli.data.shapes import shapes_tree
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe, SegmentationSection
from stvit_cli.utils.text import did_you_mean

GREY_OR_PALETTE = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes with one number for each pixel."""

NUM_NAMED = 3
"""Of many files with the same fault, so many are named."""


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures and their label maps, by number."""

    images: tuple[Path, ...]
    maps: tuple[Path, ...]
    class_names: tuple[str, ...]
    ignore_index: int
    reduce_zero_label: bool

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return str(self.images[index])

    def open(self, index: int) -> Image.Image:
        """Return a picture in mode RGB. Raises UserError as `open_image` does."""
        return open_image(self.images[index])

    def labels(self, index: int, size: tuple[int, int]) -> Labels:
        """Return the class of each pixel (H, W), -1 where it is ignored.

        Args:
            size: width and height of the picture.

        Raises:
            UserError: the map cannot be read, has another size, or holds a number that is no class.
        """
        path = self.maps[index]
        numbers = open_label_map(path)
        if numbers.shape != size[::-1]:
            raise UserError(
                f"{path}: the label map has {numbers.shape[1]} x {numbers.shape[0]} pixels, "
                f"its picture {self.images[index]} {size[0]} x {size[1]}."
            )
        return self._classes(path, numbers)

    def _classes(self, path: Path, numbers: Labels) -> Labels:
        """Turn the numbers of a map into classes 0, 1, ..., and those that stand for none into -1."""
        first = int(self.reduce_zero_label)
        ignored = numbers == self.ignore_index
        if self.reduce_zero_label:
            ignored |= numbers == 0
        classes = np.where(ignored, IGNORED, numbers - first)  # 32 bits with a sign: nothing wraps around
        wrong = (classes >= len(self.class_names)) | ((classes < 0) & ~ignored)
        if wrong.any():
            row, column = (int(place) for place in np.argwhere(wrong)[0])
            zero = "0 and " if self.reduce_zero_label else ""
            raise UserError(
                f"{path}: the label map has {numbers[row, column]} in row {row}, column {column}; expected {first} to "
                f"{first + len(self.class_names) - 1} for the {len(self.class_names)} names of segmentation.class_names, "
                f"or {zero}{self.ignore_index}, which are ignored."
            )
        return classes


class SegmentationTrainSet(Dataset[dict[str, Any]]):
    """Items ``{"image": C H W, "target": H W, "index": int, "skipped": [path]}`` by ``SampleKey``.

    An item is a function of the seed and the key alone; ``skipped`` are pictures that could not be decoded, in whose place it is.
    """

    def __init__(
        self, pictures: LabelledPictures, transform: TrainTransform, seed: int, unreadable: Literal["stop", "skip"]
    ) -> None:
        self.pictures, self.transform, self.seed, self.unreadable = pictures, transform, seed, unreadable

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, image, skipped = open_or_replace(self.pictures, key, self.seed, self.unreadable)
        labels = self.pictures.labels(index, image.size)
        with seeded(derive_seed(self.seed, "sample", key.epoch, key.index, key.view)):
            pixels, target = self.transform(image, labels)
        return {"image": pixels, "target": target, "index": index, "skipped": skipped}


class SegmentationEvalSet(Dataset[dict[str, Any]]):
    """Items ``{"images": [1 C h w, one for each scale], "target": H W at the original size, "index": int}``."""

    def __init__(self, pictures: LabelledPictures, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.pictures.open(index)
        labels = self.pictures.labels(index, image.size)
        return {"images": self.transform(image), "target": torch.from_numpy(labels).long(), "index": index}


@dataclass(frozen=True)
class SegmentationData:
    train_set: SegmentationTrainSet
    val_set: SegmentationEvalSet


def build_segmentation(recipe: Recipe) -> SegmentationData:
    """Build the training and the validation set of a recipe.

    Raises:
        UserError: a folder is missing or empty, or pictures have no label maps.
    """
    section = recipe.segmentation
    root = _root(recipe)
    pictures = find_pairs(root, section.train_images, section.train_maps, section)
    transform = TrainTransform(section, recipe.augment, recipe.data)
    train_set = SegmentationTrainSet(pictures, transform, recipe.train.seed, recipe.data.unreadable)
    return SegmentationData(train_set, build_segmentation_eval(recipe))


def build_segmentation_eval(recipe: Recipe) -> SegmentationEvalSet:
    """Build the validation set alone. Raises UserError as `build_segmentation` does."""
    section = recipe.segmentation
    pictures = find_pairs(_root(recipe), section.val_images, section.val_maps, section)
    scales = eval_transform(section, recipe.augment.interpolation, recipe.data.mean, recipe.data.std)
    return SegmentationEvalSet(pictures, scales)


def find_pairs(root: Path, images: str, maps: str, section: SegmentationSection) -> LabelledPictures:
    """Pair the pictures in and below ``root / images`` with the label maps at the same places below ``root / maps``.

    Raises:
        UserError: a folder is missing, there is no picture, or a picture has no map.
    """
    image_dir, map_dir = (_folder(root, name) for name in (images, maps))
    endings = ENDINGS if section.image_suffix is None else (section.image_suffix,)
    found = sorted(path for path in image_dir.rglob("*") if path.name.lower().endswith(tuple(end.lower() for end in endings)))
    if not found:
        expected = f"names that end in {section.image_suffix}" if section.image_suffix else "files such as *.jpg or *.png"
        raise UserError(f"{image_dir}: no picture in this folder; expected {expected}.")
    pairs = [(path, map_dir / _map_name(path.relative_to(image_dir), section)) for path in found]
    missing = [pair for pair in pairs if not pair[1].is_file()]
    if missing:
        names = [str(label_map.relative_to(map_dir)) for _, label_map in missing[:NUM_NAMED]]
        more = ", ..." if len(missing) > NUM_NAMED else ""
        raise UserError(
            f"{map_dir}: {len(missing)} of {len(pairs)} pictures have no label map here: expected {', '.join(names)}{more}\n"
            f"for {missing[0][0]}.{did_you_mean(Path(names[0]).name, _some_names(map_dir))} "
            "How names differ is said by segmentation.image_suffix and segmentation.map_suffix."
        )
    return LabelledPictures(
        images=tuple(image for image, _ in pairs),
        maps=tuple(label_map for _, label_map in pairs),
        class_names=section.class_names,
        ignore_index=section.ignore_index,
        reduce_zero_label=section.reduce_zero_label,
    )


def open_label_map(path: Path) -> NDArray[np.int32]:
    """Return the numbers in a label map, (H, W).

    Raises:
        UserError: no such file, not to be decoded, or of several values for each pixel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities that do no harm
            with Image.open(path, formats=("PNG", "TIFF", "BMP")) as label_map:
                mode = label_map.mode
                numbers = np.array(label_map, dtype=np.int32)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such label map.") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders fail on damaged files with nearly every type there is
        reason = "not a PNG" if isinstance(error, Image.UnidentifiedImageError) else str(error).strip() or type(error).__name__
        raise UserError(f"{path}: the label map cannot be read: {reason.rstrip('.')}.") from None
    if mode not in GREY_OR_PALETTE:
        raise UserError(f"{path}: the label map is a colour picture ({mode}); expected a grey or palette PNG, a number a pixel.")
    return numbers


def _map_name(image: Path, section: SegmentationSection) -> Path:
    end = image.suffix if section.image_suffix is None else section.image_suffix
    return image.with_name(image.name[: len(image.name) - len(end)] + section.map_suffix)


def _some_names(folder: Path) -> Sequence[str]:
    return [path.name for path, _ in zip(folder.iterdir(), range(1000), strict=False)]


def _root(recipe: Recipe) -> Path:
    if recipe.data.kind == "shapes":
        shapes = recipe.shapes
        counts = (shapes.num_train, shapes.num_val)
        return shapes_tree("ade20k", counts, recipe.data.image_size, shapes.seed, recipe.data.dir)
    if recipe.data.dir is None:
        raise UserError("data.dir is not set: the folder of pictures and label maps (on the command line: --data DIR).")
    root = Path(recipe.data.dir).expanduser()
    if not root.is_dir():
        siblings = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"data.dir: there is no folder {root}.{did_you_mean(root.name, siblings)}")
    return root


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
