"""Index of a COCO annotation file: read once, checked, and kept in little memory.

COCO's category ids have gaps. Labels here are 1, 2, ... in the order of the ids; 0 is the background.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.coco_annotation import InvalidAnnotationError, UnknownReferenceError, UnusableBoxError, box_within, normalized
from stvit_cli.data.coco_file import Category, ImageEntry, comparable_id, read_categories, read_images, read_json, shown
from stvit_cli.data.coco_folder import find_image_folder, with_local_names
from stvit_cli.data.formats.collection import BoxSet
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

__all__ = ["Category", "CocoIndex", "read_coco"]

BEYOND_TOLERANCE = 1.0
"""Boxes that end less than this beyond their image, in pixels, are rounded ones; COCO itself has them."""

NUM_INVALID = 1000
"""Annotations that cannot be used whose messages are kept."""

_to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class InvalidAnnotation(NamedTuple):
    """An annotation that cannot be used: its kind, where it is, and what is wrong with it."""

    reason: str
    origin: str
    message: str


@dataclass(frozen=True)
class LeftOut:
    """What of a file does not count, by reason: annotations "of a crowd".

    Attributes:
        of_training: can be evaluated, but is no object to train on.
        of_both: counts in neither.
        beyond: boxes that reach beyond their image.
        beyond_as_corners: those of them that lie within it where their last two numbers are right and bottom.
    """

    of_training: Counter[str]
    of_both: Counter[str]
    beyond: int
    beyond_as_corners: int


@dataclass(frozen=True)
class CocoIndex:
    """The images of one annotation file, in its order.

    Annotations are kept as JSON in one block of bytes: a Python object for each of a million annotations would be copied into
    every loader process, bit by bit, as its reference is counted.
    """

    path: Path
    folder: Path
    categories: tuple[Category, ...]
    file_names: tuple[str, ...]
    image_ids: tuple[Any, ...]
    sizes: NDArray[np.int64]
    """(N, 2): height and width."""
    num_objects: NDArray[np.int64]
    """(N,): those that can be trained on."""
    num_masks: NDArray[np.int64]
    """(N,): those of them that have a mask."""
    num_annotations: int
    """In the file, whether they count or not."""
    has_masks: bool
    """Whether any annotation that counts has a mask."""
    left_out: LeftOut
    expected_folder: Path
    """Where the images were looked for first; not ``folder`` where they were found elsewhere."""
    _annotations: NDArray[np.uint8]
    _ends: NDArray[np.int64]
    is_upright: bool = False
    """The sizes are those of the upright images, so that boxes in fractions of them refer to these."""
    invalid: tuple[InvalidAnnotation, ...] = ()
    """The first `NUM_INVALID` annotations that cannot be used, where they were to be skipped."""
    remarks: tuple[str, ...] = ()
    """What was noticed where the annotations were read from another format than COCO's."""

    def __len__(self) -> int:
        return len(self.file_names)

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """Return all that is annotated in an image, as `coco_annotation.normalized` does, with ``label`` and ``id``."""
        start = int(self._ends[index - 1]) if index else 0
        lines = self._annotations[start : int(self._ends[index])].tobytes()
        annotations: list[dict[str, Any]] = json.loads(b"[" + lines[:-1] + b"]")  # each ends in a comma
        return annotations

    def objects(self, index: int) -> list[dict[str, Any]]:
        """Return what can be trained on in an image: ``box`` (left, top, right, bottom), ``label``, ``id``, ``segmentation``.

        The last is missing from an object that has no mask.
        """
        height, width = self.sizes[index].tolist()
        within = [(entry, box_within(entry["box"], height, width)) for entry in self.annotations(index)]
        return [entry | {"box": box} for entry, box in within if box is not None and "crowd" not in entry]

    def select(self, indices: NDArray[np.int64]) -> CocoIndex:
        """Return the index of some of the images, with what is annotated in them; counts of the file stay those of the file."""
        starts = np.concatenate([[0], self._ends[:-1]])[indices]
        ends = self._ends[indices]
        parts = [self._annotations[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        return replace(
            self,
            file_names=tuple(self.file_names[index] for index in indices.tolist()),
            image_ids=tuple(self.image_ids[index] for index in indices.tolist()),
            sizes=self.sizes[indices],
            num_objects=self.num_objects[indices],
            num_masks=self.num_masks[indices],
            _annotations=np.concatenate([*parts, np.empty(0, dtype=np.uint8)]),
            _ends=np.cumsum(ends - starts, dtype=np.int64),
        )

    def notes(self, *, of_training: bool, masks: bool = True) -> list[str]:
        """Return in a few lines what does not count, in training or in the evaluation alone, and what looks wrong.

        Args:
            of_training: for a training set, or an evaluation.
            masks: whether the model predicts masks.
        """
        counts = self.left_out.of_training + self.left_out.of_both if of_training else self.left_out.of_both
        notes = [f"{self.path.name}: {remark}." for remark in self.remarks]
        if self.folder != self.expected_folder:
            notes.append(f"{self.path.name}: its images are in {self.folder}, not in {self.expected_folder}.")
        if masks:
            notes += self._mask_notes(of_training)
        if counts:
            of_which = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
            num_left_out, purpose = counts.total(), "training" if of_training else "evaluation"
            annotations = "annotation is" if num_left_out == 1 else "annotations are"
            notes.append(f"{self.path.name}: {num_left_out} {annotations} left out of the {purpose}: {of_which}.")
        beyond, total = self.left_out.beyond, self.num_annotations
        if beyond and self.left_out.beyond_as_corners == beyond:
            notes.append(
                f"Warning: {self.path.name}: {beyond} of {total} boxes reach beyond their image: are they corners? "
                "Expected [left, top, width, height]; they are clipped at its edge."
            )
        elif beyond:
            notes.append(f"{self.path.name}: {beyond} of {total} boxes reach beyond their image; they are clipped at its edge.")
        return notes

    def _mask_notes(self, of_training: bool) -> list[str]:
        """Return a line on the objects that have a box alone, if there are any."""
        total, without = int(self.num_objects.sum()), int((self.num_objects - self.num_masks).sum())
        if not without:
            return []
        of_evaluation = "left out of the mask metrics with what is detected in their boxes"
        consequence = "trained by class and box alone" if of_training else of_evaluation
        return [f"{self.path.name}: objects without a mask: {without} of {total}, {consequence}."]


def read_boxes(boxes: BoxSet, *, invalid: Literal["stop", "skip"] = "stop") -> CocoIndex:
    """Check what was read from another format than COCO's, as `read_coco` does; messages name its own files.

    Args:
        boxes: what was read; its list of annotations is emptied.
        invalid: see `read_coco`.

    Raises:
        UserError: see `read_coco`.
    """
    return read_coco(boxes.source, boxes.folder, invalid=invalid, converted=boxes)


def read_coco(
    path: Path,
    folder: Path | None,
    *,
    invalid: Literal["stop", "skip"] = "stop",
    annotated: bool = True,
    root: Path | None = None,
    other: Path | None = None,
    converted: BoxSet | None = None,
) -> CocoIndex:
    """Read an annotation file, check it, and check that its images are in the folder.

    Crowds and boxes of less than a pixel are not trained on; boxes are clipped to the image.

    Args:
        path: of the JSON file.
        folder: of the images; None: their files are not checked, and none can be opened.
        invalid: what to do about invalid annotations. stop: refuse the file; skip: leave them out and count them.
        annotated: refuse a file without a list of annotations.
        root: of the data set, see `find_image_folder`.
        other: of the other set's images, see `find_image_folder`.
        converted: in place of the file's content; see `read_boxes`.

    Raises:
        UserError: a file or folder is missing, the file is not in COCO's format or inconsistent, or an image is missing.
    """
    content = read_json(path, annotated=annotated) if converted is None else converted.content()
    categories = read_categories(path, content["categories"])
    entries, renamed = content["images"], None
    if folder is not None and converted is None:
        entries, renamed = with_local_names(path, entries, folder)
    images = read_images(path, entries)
    file_names = tuple(image.file_name for image in images.values())
    found = find_image_folder(path, folder, file_names, root, other) if folder is not None else Path()
    reader = _Reader(path, images, categories, skip=invalid == "skip")
    for fault in converted.faults if converted is not None else ():
        reader.refuse(fault.reason, printable(fault.origin), f": {fault.message}.")
    annotations = content.pop("annotations")
    content.clear()
    for position in range(len(annotations)):
        reader.add(position, annotations[position])
        annotations[position] = None  # a million of them take gigabytes, and what is kept of them takes room too
    reader.finish()
    return CocoIndex(
        path=path,
        folder=found,
        expected_folder=folder if folder is not None else Path(),
        categories=categories,
        file_names=file_names,
        image_ids=tuple(image.id for image in images.values()),
        sizes=np.array(reader.sizes, dtype=np.int64).reshape(-1, 2),
        num_objects=np.array(reader.num_objects, dtype=np.int64),
        num_masks=np.array(reader.num_masks, dtype=np.int64),
        num_annotations=len(annotations),
        has_masks=reader.has_masks,
        left_out=LeftOut(reader.of_training, reader.of_both, reader.beyond, reader.beyond_as_corners),
        _annotations=np.frombuffer(b"".join(reader.packed), dtype=np.uint8),
        _ends=np.cumsum([len(part) for part in reader.packed], dtype=np.int64),
        invalid=tuple(reader.invalid),
        is_upright=converted is not None and converted.is_upright,
        remarks=converted.remarks if converted is not None else () if renamed is None else (renamed,),
    )


class UnusableAnnotationsError(UserError):
    """Annotations of a file cannot be used, and are not to be skipped.

    Attributes:
        found: which they are, without the way out.
    """

    def __init__(self, found: str, remedy: str = "set detection.invalid_annotations=skip") -> None:
        super().__init__(f"{found} Mend them, or {remedy}:\nthen they are left out of training and evaluation, and counted.")
        self.found = found


class _Reader:
    """Takes annotations one by one, and keeps of each what is needed."""

    def __init__(self, path: Path, images: Mapping[int | str, ImageEntry], categories: Sequence[Category], *, skip: bool) -> None:
        self.path, self.skip, self.categories = path, skip, categories
        self.first_ids = (next(iter(images.values())).id, categories[0].written_id)
        self.positions: dict[int | str | None, int] = {number: position for position, number in enumerate(images)}
        self.labels: dict[int | str | None, int] = {category.id: label for label, category in enumerate(categories, start=1)}
        self.sizes = [(image.height, image.width) for image in images.values()]
        self.packed = [bytearray() for _ in images]
        self.num_objects = [0] * len(images)
        self.num_masks = [0] * len(images)
        self.has_masks = False
        self.of_training: Counter[str] = Counter()
        self.of_both: Counter[str] = Counter()
        self.beyond = self.beyond_as_corners = 0
        self.first_fault: str | None = None
        self.invalid: list[InvalidAnnotation] = []

    def add(self, position: int, annotation: Mapping[str, Any]) -> None:
        try:
            index, label = self._image_of(annotation), self._label_of(annotation)
            found = normalized(annotation, *self.sizes[index])
        except InvalidAnnotationError as fault:
            if isinstance(fault, UnusableBoxError):
                self.of_both[fault.reason] += 1
            else:
                origin = annotation.get("origin")  # of another format than COCO's
                named = printable(origin) if origin else f"{self.path}: {_name(annotation, position)}"
                self.refuse(fault.reason, named, f"{fault.joint}{fault}")
            return
        number = annotation.get("id")
        found |= {"label": label, "id": number if type(number) in (int, str) else None}
        self._count(index, found)
        self.packed[index] += _to_json(found).encode() + b","

    def refuse(self, reason: str, origin: str, text: str) -> None:
        """Count an annotation that cannot be used, and keep the messages of the first ones."""
        self.of_both[reason] += 1
        self.first_fault = self.first_fault or f"{origin}{text}"
        if len(self.invalid) < NUM_INVALID:
            self.invalid.append(InvalidAnnotation(reason, origin, f"{origin}{text}"))

    def finish(self) -> None:
        """Raise where annotations were found that cannot be used and are not to be skipped."""
        if self.first_fault is None or self.skip:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in self.of_both.most_common())
        raise UnusableAnnotationsError(f"{self.first_fault}\nAnnotations that cannot be used: {counts}.")

    def _image_of(self, annotation: Mapping[str, Any]) -> int:
        given = annotation.get("image_id")
        index = self.positions.get(comparable_id(given))
        if index is None:
            text = f"is of image {_id(given)}, which is not in the file{_for_example(given, self.first_ids[0])}."
            raise UnknownReferenceError("of an image that is not in the file", text)
        return index

    def _label_of(self, annotation: Mapping[str, Any]) -> int:
        given = annotation.get("category_id")
        label = self.labels.get(comparable_id(given))
        if label is None:
            known = ", ".join(str(category.id) for category in self.categories[:20])
            text = (
                f"is of category {_id(given)}, which is not in the file{_for_example(given, self.first_ids[1])}.\n"
                f"Categories: {known}{', ...' if len(self.categories) > 20 else ''}"
            )
            raise UnknownReferenceError("of a category that is not in the file", text)
        return label

    def _count(self, index: int, found: Mapping[str, Any]) -> None:
        (height, width), (left, top, across, down) = self.sizes[index], found["box"]
        if left + across > width + BEYOND_TOLERANCE or top + down > height + BEYOND_TOLERANCE:
            self.beyond += 1
            self.beyond_as_corners += 0 <= left < across <= width + 1 and 0 <= top < down <= height + 1
        elif left < -BEYOND_TOLERANCE or top < -BEYOND_TOLERANCE:
            self.beyond += 1
        self.has_masks |= "segmentation" in found
        if "crowd" in found:
            self.of_training["of a crowd"] += 1
        elif box_within(found["box"], height, width) is None:
            self.of_training["with a box of less than a pixel"] += 1
        else:
            self.num_objects[index] += 1
            self.num_masks[index] += "segmentation" in found


def _name(annotation: Mapping[str, Any], position: int) -> str:
    number = annotation.get("id")
    return f"annotation {number}" if type(number) is int else f"annotation {shown(number)} at index {position}"


def _id(given: Any) -> str:
    return str(given) if type(given) is int else shown(given)


def _for_example(given: Any, other: Any) -> str:
    """Return how ids are written in the file, where that is another type."""
    return f" (there ids are such as {shown(other)})" if type(given) is not type(other) else ""
