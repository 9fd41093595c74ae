"""Images and label maps in a folder: ADE20K, images/ and masks/, a suffix in one folder, CamVid."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from PIL import Image

from stvit_cli.data.folder_survey import Folder, Survey, parent_of, split_of
from stvit_cli.data.label_maps import FORMATS, GREY_OR_PALETTE
from stvit_cli.data.layout import Given, Layout, layout, which
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

MAP_ENDINGS = (".png", ".tif", ".tiff", ".bmp")

SUFFIXES = (
    "",
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_seg",
    "_segmentation",
    "_annotation",
    "_gt",
    "_map",
    "_L",
    "-mask",
    "-label",
    "-seg",
    ".mask",
    "_gtFine_labelIds",
)
"""What the name of a label map has after that of its image."""

IMAGE_SUFFIXES = ("", "_leftImg8bit", "_image", "_img", "_sat", "_rgb")
"""What the name of an image has that its label map's has not."""

_MAP_NAME = re.compile(r"(?:^|[^a-z])(masks?|annot[a-z]*|labels?|labelmaps?|maps?|gt|gtfine|seg[a-z]*|ground[a-z]*)(?:$|[^a-z])")
"""The name of a folder of label maps, without that of a split."""

Pair = tuple[str, str, str | None, str]
"""Folder of the images, folder of the maps, and the suffixes of both, the image's None where it is the extension."""


def find_maps(survey: Survey, given: Given) -> list[Layout]:
    """Return the layout of the images and label maps in a folder; an empty list where there are none.

    Raises:
        UserError: several folders could be the training images' maps.
    """
    named = {f"segmentation.{key}": given.get(f"segmentation.{key}") for key in ("train_images", "train_maps")}
    if any(named.values()):
        missing = [key for key, value in named.items() if not value]
        if missing:
            raise UserError(f"{printable(str(survey.root))}: {missing[0]} is not set; images and label maps are given together.")
        return [layout("segmentation", "ade20k", survey.root, "images and label maps in the folders that are given", named)]
    pairs = [pair for folder in survey if folder.num_images and (pair := _maps_of(survey, folder)) is not None]
    if not pairs:
        return []
    train, val = _by_split(survey.root, list(dict.fromkeys(_without_common_end(pair) for pair in pairs)))
    keys: dict[str, object] = {
        "segmentation.train_images": train[0] or ".",
        "segmentation.train_maps": train[1] or ".",
        "segmentation.val_images": None if val is None else val[0] or ".",
        **({} if val is None else {"segmentation.val_maps": val[1] or "."}),
        "segmentation.image_suffix": train[2],
        "segmentation.map_suffix": train[3],
    }
    folders = f"{printable(train[0] or '.')} and {printable(train[1] or '.')}"
    if train[0] == train[1]:
        folders = f"side by side in {printable(train[0] or '.')}"
    split = "without a split, so a part is held out" if val is None else f"validated on {printable(val[0] or '.')}"
    return [layout("segmentation", "ade20k", survey.root, f"images and label maps, {folders}, {split}", keys)]


def _without_common_end(pair: Pair) -> Pair:
    """Return the folders above two of the same name, such as leftImg8bit/train and gtFine/train above those of a city."""
    images, maps = pair[:2]
    while images != maps and images.rpartition("/")[2] == maps.rpartition("/")[2] and split_of(images.rpartition("/")[2]) is None:
        images, maps = parent_of(images), parent_of(maps)
    return images, maps, *pair[2:]


def _maps_of(survey: Survey, folder: Folder) -> Pair | None:
    """Return the pair that a folder of images has with a folder of label maps, the likeliest if there are several."""
    found = []
    for other in survey:
        # Images of the same names in two folders are also what two classes look like: the name of one must tell.
        if not other.num_images or (other.path != folder.path and (_is_for_maps(folder.path) or not _is_for_maps(other.path))):
            continue
        suffixes = _suffixes(survey.root, folder, other)
        if suffixes is not None:
            found.append((folder.path, other.path, *suffixes))
    named = [pair for pair in found if _is_for_maps(pair[1])]
    same_split = [pair for pair in named or found if split_of(pair[1]) == split_of(folder.path)]
    best = same_split or named or found
    return min(best, key=lambda pair: _distance(pair[0], pair[1])) if best else None


def _is_for_maps(path: str) -> bool:
    """Whether a path is that of a folder of label maps, by the names in it that are no split's."""
    names = [re.sub(r"train(ing)?|val(id(ation)?)?|test(ing)?|set", "-", name) for name in path.lower().split("/")]
    if re.search(r"(^|[^a-z])(images?|imgs?|photos?|jpegimages)($|[^a-z])", names[-1]):
        return False
    return any(_MAP_NAME.search(re.sub(r"segmentation(class|object)", "segmentation", name)) for name in names)


def _distance(first: str, second: str) -> int:
    """Number of steps from one folder to the other."""
    a, b = first.split("/"), second.split("/")
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return len(a) + len(b) - 2 * common


def _suffixes(root: Path, folder: Folder, maps: Folder) -> tuple[str | None, str] | None:
    """Return the suffixes by which the first images of a folder have label maps in another, None where they have none."""
    for image_suffix in IMAGE_SUFFIXES:
        stems = [os.path.splitext(name) for name in folder.images]
        images = [
            (stem.removesuffix(image_suffix), image_suffix + ending) for stem, ending in stems if stem.endswith(image_suffix)
        ]
        for suffix in SUFFIXES:
            for ending in MAP_ENDINGS:
                expected = [(stem + image_end, stem + suffix + ending) for stem, image_end in images]
                if maps.path == folder.path:
                    expected = [(image, label_map) for image, label_map in expected if image != label_map]
                if maps.path != folder.path and expected and not (root / maps.path / expected[0][1]).is_file():
                    continue
                present = [label_map for _, label_map in expected if (root / maps.path / label_map).is_file()]
                enough = len(present) == len(folder.images) if maps.path != folder.path else bool(present)
                # A folder named so holds maps even if they are no grey PNGs: whoever reads them says what is wrong.
                named = maps.path != folder.path
                if present and enough and (named or all(_is_map(root / maps.path / label_map) for label_map in present)):
                    own = {image_end for stem, image_end in images if stem + suffix + ending in present}
                    return (own.pop() if image_suffix and len(own) == 1 else None), suffix + ending
    return None


def _is_map(path: Path) -> bool:
    """Whether an image has one number for each pixel, by its header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as opened:
                return opened.mode in GREY_OR_PALETTE
    except Exception:  # whatever a decoder raises: it is no map
        return False


def _by_split(root: Path, pairs: list[Pair]) -> tuple[Pair, Pair | None]:
    by_split = {split: [pair for pair in pairs if split_of(pair[0]) == split] for split in ("train", "val", "test", None)}
    trains = by_split["train"] or by_split[None] or pairs
    if len(trains) > 1:
        found = f"{len(trains)} folders of images with label maps could be the training images"
        raise which(root, found, "segmentation.train_images", [pair[0] or "." for pair in trains])
    val = next((by_split[split][0] for split in ("val", "test") if by_split[split] and by_split[split][0] != trains[0]), None)
    return trains[0], val
