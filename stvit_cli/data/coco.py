"""Datasets for detection in COCO's layout: images with boxes, labels and masks.

N objects of an image, H W rows and columns of an image. Boxes are (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as F

from stvit_cli.data.classification import open_or_replace
from stvit_cli.data.coco_file import comparable_id
from stvit_cli.data.coco_index import CocoIndex
from stvit_cli.data.images import as_stored, open_image, orientation_of
from stvit_cli.data.loader import seeded
from stvit_cli.data.sampling import SampleKey, derive_seed
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

ORIENTATIONS = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored and turned by 90 degrees",
    6: "turned by 90 degrees",
    7: "mirrored and turned by 90 degrees",
    8: "turned by 90 degrees",
}
"""EXIF's orientations in words; 1 is upright."""


class CocoImages:
    """Images of an annotation file with their targets.

    Args:
        index: the annotation file.
        indices: the images to keep, by their position in the file; None: all.
        exif_orientation: apply: annotations refer to images rotated by their EXIF orientation; ignore: to the pixels as stored;
            None: apply where the size in the file confirms it, otherwise refuse such an image.
        masks: whether the targets have masks.
    """

    def __init__(
        self,
        index: CocoIndex,
        indices: NDArray[np.int64] | None = None,
        exif_orientation: Literal["apply", "ignore"] | None = None,
        *,
        masks: bool = True,
    ) -> None:
        self.index, self.masks = index, masks
        self.indices = np.arange(len(index)) if indices is None else indices
        self.exif_orientation = exif_orientation or ("apply" if index.is_upright else None)

    def __len__(self) -> int:
        return len(self.indices)

    def path(self, index: int) -> str:
        return str(self.index.folder / self.index.file_names[self.indices[index]])

    def fingerprint(self) -> str:
        """Return a hash of the categories and of the file names and ids of the images, in order."""
        chosen = [(self.index.file_names[index], self.index.image_ids[index]) for index in self.indices.tolist()]
        categories = [(category.id, category.name) for category in self.index.categories]
        return hashlib.blake2b(json.dumps([categories, chosen]).encode(), digest_size=16).hexdigest()

    def image_id(self, index: int) -> Any:
        return self.index.image_ids[self.indices[index]]

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width."""
        height, width = self.index.sizes[self.indices[index]].tolist()
        return height, width

    def open(self, index: int) -> Image.Image:
        """Return the image in the orientation that its annotations refer to.

        Raises:
            UserError: as `open_image`; also where its size differs from the annotation file, or its EXIF orientation is
                ambiguous.
        """
        image, (height, width) = open_image(self.path(index)), self.size(index)
        orientation = orientation_of(image)
        if orientation != 1:
            return self._oriented(index, image, orientation)
        if image.size != (width, height):
            raise UserError(
                f"{printable(self.path(index))} is {image.width} x {image.height} pixels, not {width} x {height}, as "
                f"{self.index.path} says."
            )
        return image

    def _oriented(self, index: int, upright: Image.Image, orientation: int) -> Image.Image:
        """Return the image upright or as stored.

        The size alone does not tell which: some tools draw on the one and export the size of the other. Where it is ambiguous,
        the user is asked to set ``detection.exif_orientation``.
        """
        height, width = self.size(index)
        stored = as_stored(upright)
        fits = {"apply": upright.size == (width, height), "ignore": stored.size == (width, height)}
        if self.exif_orientation is not None:
            if fits[self.exif_orientation]:
                return upright if self.exif_orientation == "apply" else stored
        elif fits["apply"] and not fits["ignore"]:
            return upright
        does_not_tell = "" if not all(fits.values()) else ", which does not tell which of the two was annotated"
        raise UserError(
            f"{printable(self.path(index))} has the EXIF orientation {orientation} ({ORIENTATIONS[orientation]}): upright it is "
            f"{upright.width} x {upright.height} pixels, as stored {stored.width} x {stored.height}.\n"
            f"{self.index.path} says {width} x {height}{does_not_tell}.\n"
            "Were the annotations drawn on the pixels as stored? detection.exif_orientation=ignore. On the upright image? "
            "detection.exif_orientation=apply, and its upright size in the file."
        )

    def targets(self, index: int) -> dict[str, Tensor]:
        """Return ``boxes`` (N, 4) float32 and ``labels`` (N,) int64 from 1; and with masks two more.

        ``masks`` (N, H, W), uint8 of 0 and 1, and ``has_mask`` (N,), bool: an object without one has zeros there, which nothing
        is to be learned from.
        """
        objects = self.index.objects(int(self.indices[index]))
        targets = {
            "boxes": torch.tensor([entry["box"] for entry in objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([entry["label"] for entry in objects], dtype=torch.int64),
        }
        if not self.masks:
            return targets
        masks = np.zeros((len(objects), *self.size(index)), dtype=np.uint8)
        for mask, entry in zip(masks, objects, strict=True):
            if "segmentation" in entry:
                mask[:] = decode_mask(entry["segmentation"], *mask.shape)
        has_mask = torch.tensor(["segmentation" in entry for entry in objects], dtype=torch.bool)
        return targets | {"masks": torch.from_numpy(masks), "has_mask": has_mask}


class DetectionTrainSet(Dataset[dict[str, Any]]):
    """Training set, indexed by `SampleKey`.

    Items are ``{"image": (3, H, W) in 0..1, "targets": see CocoImages.targets, "index": int, "skipped": [path]}``. An item
    depends on the seed and the key alone.

    Args:
        images: with their targets.
        hflip: probability of a horizontal flip.
        seed: of the run.
        unreadable: what to do about an image that cannot be decoded; see `open_or_replace`.

    Attributes:
        aspect_ratios: width / height of every image; see `TrainBatches`.
    """

    def __init__(self, images: CocoImages, hflip: float, seed: int, unreadable: Literal["stop", "skip"]) -> None:
        self.images, self.hflip, self.seed, self.unreadable = images, hflip, seed, unreadable
        sizes = images.index.sizes[images.indices]
        self.aspect_ratios = sizes[:, 1] / sizes[:, 0]

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return self.images.path(index)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, opened, skipped = open_or_replace(self.images, key, self.seed, self.unreadable)
        image, targets = F.to_tensor(opened), self.images.targets(index)
        with seeded(derive_seed(self.seed, "sample", key.epoch, key.index, key.view)):
            if torch.rand(()) < self.hflip:
                image, targets = flip(image, targets)
        return {"image": image, "targets": targets, "index": index, "skipped": skipped}


class DetectionEvalSet(Dataset[dict[str, Any]]):
    """Validation set. Items are ``{"image": (3, H, W) in 0..1, "index": int}``; an unreadable image raises UserError."""

    def __init__(self, images: CocoImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return self.images.path(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": F.to_tensor(self.images.open(index)), "index": index}


@dataclass(frozen=True)
class DetectionData:
    """The sets of a detection run, the names of its classes, and lines for the user on what was held out."""

    train_set: DetectionTrainSet
    val_set: DetectionEvalSet
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return a mask (H, W) of 0 and 1 from polygons, or from a run-length code as text or as a list of counts."""
    mask: NDArray[np.uint8] = rle.decode(encoded(segmentation, height, width))
    return mask


def encoded(segmentation: Any, height: int, width: int) -> Any:
    """Return pycocotools' run-length code of polygons, or of a run-length code as text or as a list of counts."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)
    return segmentation


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the run-length code of a mask (H, W), as JSON can hold it."""
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def flip(image: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Flip an image (3, H, W) and its targets horizontally."""
    left, top, right, bottom = targets["boxes"].unbind(1)
    width = image.shape[2]
    flipped = {"boxes": torch.stack([width - right, top, width - left, bottom], dim=1)}
    if "masks" in targets:
        flipped["masks"] = targets["masks"].flip(2)
    return image.flip(2), targets | flipped


def ground_truth(index: CocoIndex) -> COCO:
    """Return the checked annotations of a file, crowds and small boxes included, as pycocotools' ground truth.

    ``area`` is that of the mask where the file has none, or of the box. Ids are new and start at 1, as pycocotools takes 0 for
    none: annotations in the order of the images, categories as labels, images as in `image_numbers`.
    """
    annotations: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for position, image_id in enumerate(image_numbers(index).values()):
        height, width = index.sizes[position].tolist()
        images.append({"id": image_id, "height": height, "width": width})
        for entry in index.annotations(position):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": entry["label"],
                "bbox": entry["box"],
                "area": annotated_area(entry, height, width),
                "iscrowd": entry.get("crowd", 0),
            }
            if "segmentation" in entry:
                annotation["segmentation"] = entry["segmentation"]
            annotations.append(annotation)
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": category.name} for label, category in enumerate(index.categories, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def ignore_without_masks(truth: COCO) -> None:
    """Make the objects of a ground truth that have a box alone regions to ignore, for the mask metrics.

    Their masks are not known, so what is detected in their boxes is neither right nor wrong. pycocotools ignores the region of a
    crowd in this way, and nothing else that a file can hold: an ignored object that is no crowd would have to be matched by IoU
    with a mask.
    """
    for annotation in truth.anns.values():
        if "segmentation" not in annotation:
            image = truth.imgs[annotation["image_id"]]
            region = box_region(annotation["bbox"], image["height"], image["width"])
            annotation.update(segmentation=region, iscrowd=1)


def annotated_area(entry: Mapping[str, Any], height: int, width: int) -> Any:
    """Return the area of an annotation in pixels: of the file, else of its mask, else of its box."""
    if "area" in entry:
        return entry["area"]
    if "segmentation" in entry:
        return int(rle.area(encoded(entry["segmentation"], height, width)))
    return entry["box"][2] * entry["box"][3]


def box_region(box: Sequence[float], height: int, width: int) -> Any:
    """Return the run-length code of the part of a box (left, top, width, height) within the image."""
    left, top = (min(max(side, 0), most) for side, most in ((box[0], width), (box[1], height)))
    right, bottom = (min(max(side, 0), most) for side, most in ((box[0] + box[2], width), (box[1] + box[3], height)))
    return encoded([[left, top, right, top, right, bottom, left, bottom]], height, width)


def image_numbers(index: CocoIndex) -> dict[Any, int]:
    """Return the rank of each image id, from 1, in pycocotools' sort order, which decides between detections of equal score."""
    return id_ranks(index.image_ids)


def id_ranks(ids: Sequence[Any]) -> dict[Any, int]:
    """Return the rank of each image id, from 1; see `image_numbers`."""
    if all(isinstance(image_id, str) for image_id in ids):
        ranked = sorted(ids)
    else:
        ranked = sorted(ids, key=lambda image_id: (isinstance(key := comparable_id(image_id), str), key))
    ranks = {image_id: rank for rank, image_id in enumerate(ranked, start=1)}
    return {image_id: ranks[image_id] for image_id in ids}
