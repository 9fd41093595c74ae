"""What a data set of another format is read into: images with boxes and polygons, by split, in COCO's terms.

Coordinates are pixels from 0. Every annotation knows the file, and line, that it was read from, so that messages name these.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from stvit_cli.data.images import FORMATS
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, printable

ALL = "all"
"""The name of the only split of a data set that is not divided."""

_METADATA = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Where Pillow finds an orientation in a PNG."""

HEADER_THREADS = 8
"""Read the sizes of images; a network disk answers many questions at once."""


@dataclass(frozen=True)
class Fault:
    """An annotation, or a file, that cannot be used.

    Attributes:
        origin: the file, with the line where it has lines.
        reason: its kind, for a count: ``N`` annotations "that cannot be read".
        message: what is wrong with it.
    """

    origin: str
    reason: str
    message: str


@dataclass
class Found:
    """What was read of one split, by a reader of a format.

    Attributes:
        source: the file or folder that the split was read from, for messages.
    """

    source: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    """``path``, and ``size`` (width, height), None where the image file has to tell."""
    annotations: list[dict[str, Any]] = field(default_factory=list)
    """``image`` (position), ``category`` (a name, or an id from 0), ``box`` (left, top, right, bottom), ``origin``, and where
    there are any ``polygons``, ``mask`` (a run-length code) and ``crowd``."""
    faults: list[Fault] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    measured: bool = False
    """Whether sizes were read from the images, and are not a file's word."""
    num_turned: int = 0
    """Images among them with an EXIF orientation."""

    def image(self, path: Path, size: tuple[int, int] | None = None) -> int:
        """Add an image and return its position."""
        self.images.append({"path": path, "size": size})
        return len(self.images) - 1

    def measure(self, paths: Sequence[Path], *, stored: bool) -> list[tuple[int, int] | str]:
        """Return `image_size` of images, in order."""
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            headers = list(pool.map(lambda path: image_size(path, stored=stored), paths))
        self.measured = self.measured or bool(headers)
        self.num_turned += sum(1 for _, orientation in headers if orientation != 1)
        return [size for size, _ in headers]

    def add(self, image: int, category: str | int, box: Sequence[float], origin: str, **more: Any) -> None:
        """Add an annotation of an image."""
        self.annotations.append({"image": image, "category": category, "box": list(box), "origin": origin, **more})

    def fault(self, origin: str, reason: str, message: str) -> None:
        """Note what cannot be used."""
        self.faults.append(Fault(origin, reason, message))


@dataclass(frozen=True)
class BoxSet:
    """The images of a split with their annotations, as the lists of a COCO file.

    Attributes:
        source: what messages name: the file or folder that it was read from.
        folder: the folder that ``file_name`` of the images is relative to.
        annotations: of COCO's keys, and ``origin``.
        faults: annotations that are not among them, as they cannot be read.
        remarks: lines for the user.
        is_upright: the sizes are those of the upright images, not a file's word.
    """

    source: Path
    folder: Path
    categories: list[dict[str, Any]]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    faults: tuple[Fault, ...] = ()
    remarks: tuple[str, ...] = ()
    is_upright: bool = False

    def content(self) -> dict[str, Any]:
        """Return the lists in a dictionary, as a COCO file has them."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}


@dataclass(frozen=True)
class BoxData:
    """A data set read from another format.

    Attributes:
        kind: the format: yolo, voc, labelme, cvat, createml or coco.
        splits: by name: ``train``, ``val``, ``test``, or `ALL` alone.
        class_names: in the order of the category ids, which start at 1.
    """

    kind: str
    splits: dict[str, BoxSet]
    class_names: tuple[str, ...]


def assemble(
    kind: str,
    root: Path,
    splits: Mapping[str, Found],
    class_names: Sequence[str] | None = None,
    *,
    names_from: str = "",
    stored_orientation: bool = False,
) -> BoxData:
    """Bring what was read into COCO's terms.

    Args:
        kind: the format.
        root: folder of the data set.
        splits: what was read.
        class_names: the names of the classes, in order; None: those that occur, sorted.
        names_from: where the names are from, for messages.
        stored_orientation: take the sizes of images as stored, without regard to their EXIF orientation.

    Raises:
        UserError: there is no image, or no class; a class has the name of another.
    """
    if not any(found.images for found in splits.values()):
        raise UserError(f"{root}: no images with annotations in {TITLES[kind]}'s format in it.")
    if class_names is None:
        every = (annotation["category"] for found in splits.values() for annotation in found.annotations)
        class_names = sorted({name for name in every if isinstance(name, str)})
    _require_classes(root, splits, class_names, names_from)
    known: dict[str | int, int] = {name: position for position, name in enumerate(class_names, start=1)}
    known |= {position: position + 1 for position in range(len(class_names))}
    sets, first_id = {}, 1
    for name, found in splits.items():
        if found.images:
            sets[name] = _box_set(found, class_names, known, names_from, first_id, stored=stored_orientation)
            first_id += len(found.images)
    return BoxData(kind, sets, tuple(class_names))


TITLES = {
    "yolo": "YOLO",
    "voc": "Pascal VOC",
    "labelme": "LabelMe",
    "cvat": "CVAT",
    "createml": "CreateML",
    "coco": "COCO",
    "roboflow": "Roboflow",
}
"""The formats' names for people."""


def _require_classes(root: Path, splits: Mapping[str, Found], class_names: Sequence[str], names_from: str) -> None:
    twice = [name for name, count in Counter(class_names).items() if count > 1]
    if twice:
        raise UserError(f"{names_from or root}: two classes have the name {printable(repr(twice[0]))}; each needs its own.")
    if not class_names:
        faults = [fault for found in splits.values() for fault in found.faults]
        first = f"\n{faults[0].origin}: {faults[0].message}" if faults else ""
        raise UserError(f"{root}: no annotated object that could be read, and so no class.{first}")


def _box_set(
    found: Found, class_names: Sequence[str], known: Mapping[str | int, int], names_from: str, first_id: int, *, stored: bool
) -> BoxSet:
    _measure(found, stored=stored)
    as_what = "as stored, by detection.exif_orientation" if stored else "upright; detection.exif_orientation=ignore: as stored"
    taken = f"an EXIF orientation: coordinates are of the image {as_what}"
    found.remarks += counted(found.num_turned, f"image has {taken}", f"images have {taken}")
    folder = _common_folder([image["path"] for image in found.images])
    start = len(os.path.join(folder, ""))
    images = [
        {
            "id": first_id + position,
            "file_name": str(image["path"])[start:],
            "width": image["size"][0],
            "height": image["size"][1],
        }
        for position, image in enumerate(found.images)
        if image["size"] is not None
    ]
    annotations = []
    for annotation in found.annotations:
        if found.images[annotation["image"]]["size"] is None:
            continue  # the image cannot be read, which is a fault already
        category = known.get(annotation["category"])
        if category is None:
            found.fault(annotation["origin"], "of an unknown class", _unknown(annotation["category"], class_names, names_from))
        else:
            annotations.append(_coco(annotation, category, first_id))
    return BoxSet(
        source=found.source,
        folder=Path(folder),
        categories=[{"id": position, "name": name} for position, name in enumerate(class_names, start=1)],
        images=images,
        annotations=annotations,
        faults=tuple(found.faults),
        remarks=tuple(found.remarks),
        is_upright=found.measured and not stored,
    )


def _coco(annotation: Mapping[str, Any], category: int, first_id: int) -> dict[str, Any]:
    left, top, right, bottom = annotation["box"]
    polygons = annotation.get("polygons") or []
    entry: dict[str, Any] = {
        "image_id": first_id + annotation["image"],
        "category_id": category,
        "bbox": [left, top, round(right - left, 4), round(bottom - top, 4)],
        "segmentation": annotation.get("mask") or polygons,
        "iscrowd": int(bool(annotation.get("crowd"))),
        "origin": annotation["origin"],
    }
    if "mask" not in annotation:
        area = sum(map(_polygon_area, polygons)) if polygons else (right - left) * (bottom - top)
        entry["area"] = round(area, 2) if 0 <= area < 1e15 else None  # what is wrong with the box is said of the box
    return entry


def _polygon_area(polygon: Sequence[float]) -> float:
    """Return the area of [x, y, x, y, ...], by the shoelace formula."""
    xs, ys = polygon[0::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(ys)))) / 2


def _unknown(category: str | int, class_names: Sequence[str], names_from: str) -> str:
    where, count = f" of {names_from}" if names_from else "", len(class_names)
    if isinstance(category, int):
        return f"class {category}, expected 0 to {count - 1}, the {count} classes{where}"
    return f"class {printable(repr(category))} is none of the {count} classes{where}.{did_you_mean(category, class_names)}"


def _common_folder(paths: Sequence[Path]) -> str:
    return os.path.commonpath([str(path.parent) for path in paths])


def _measure(found: Found, *, stored: bool) -> None:
    """Read the size of every image that has none from its file."""
    unknown = [image for image in found.images if image["size"] is None]
    sizes = found.measure([image["path"] for image in unknown], stored=stored)
    for image, size in zip(unknown, sizes, strict=True):
        if isinstance(size, str):
            found.fault(str(image["path"]), "on an image that cannot be read", size)
        else:
            image["size"] = size


def image_size(path: Path, *, stored: bool = False) -> tuple[tuple[int, int] | str, int]:
    """Return width and height of an image, from the header of its file, or why it cannot be read; and its EXIF orientation.

    Args:
        path: of the image.
        stored: the size without regard to the EXIF orientation; otherwise that of the upright image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            orientation = _orientation(image)
    except FileNotFoundError:
        return "there is no such image", 1
    except Image.UnidentifiedImageError:
        return "not an image, or a damaged one", 1
    except Exception as error:  # decoders fail on damaged files with nearly every type there is
        return f"the image cannot be read: {printable(str(error)) or type(error).__name__}", 1
    turned = not stored and orientation in (5, 6, 7, 8)
    return (height, width) if turned else (width, height), orientation if orientation in range(2, 9) else 1


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation without decoding the image, as Pillow does in search of the metadata of a PNG that has none."""
    if image.format == "PNG" and not _METADATA & image.info.keys():
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata is no reason to refuse an image
        return 1


def counted(count: int, one: str, many: str, names: Iterable[str] = ()) -> list[str]:
    """Return a remark such as ``2 label files have no image (a.txt, b.txt)``, none where there is nothing."""
    if not count:
        return []
    named = first_few(list(names), 3)
    return [f"{count} {one if count == 1 else many}" + (f" ({named})" if named else "")]
