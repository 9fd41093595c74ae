"""Data sets of boxes, converted between formats: `data_convert`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling, require_new_file
from stvit_cli.utils.text import did_you_mean, printable

if TYPE_CHECKING:
    from stvit_cli.data.coco_index import CocoIndex

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class ConvertedFile:
    """A COCO file that `data_convert` wrote.

    Attributes:
        split: ``train``, ``val``, ``test``, or ``all`` of a data set that is not divided.
        file: its path.
        image_folder: the folder that its file names are relative to.
        num_images: in it.
        num_objects: in it, without those that are ignored.
        num_masks: of the objects, those with a mask.
        notes: what was noticed and what is left out.
    """

    split: str
    file: Path
    image_folder: Path
    num_images: int
    num_objects: int
    num_masks: int
    notes: Sequence[str]


@dataclass(frozen=True)
class ConversionResult:
    """What `data_convert` read and wrote.

    Attributes:
        format: the format of the source.
        source: the folder of the data set.
        class_names: in the order of the category ids, which start at 1.
        files: one for each split.
    """

    format: str
    source: Path
    class_names: Sequence[str]
    files: Sequence[ConvertedFile]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit data convert --json` writes them."""
        files = [{**asdict(file), "file": str(file.file), "image_folder": str(file.image_folder)} for file in self.files]
        return {"format": self.format, "source": str(self.source), "class_names": list(self.class_names), "files": files}


def data_convert(
    source: AnyPath,
    output: AnyPath,
    format: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    skip_invalid: bool = False,
) -> ConversionResult:
    """Convert a data set of boxes or polygons into COCO's format. The images stay where they are.

    Args:
        source: the folder of the data set, or a file in it: YOLO's data.yaml, CVAT's XML.
        output: a new file ending in ``.json``. A data set with a split becomes ``output-train.json``, ``output-val.json`` and
            ``output-test.json``.
        format: yolo, voc, roboflow, labelme, cvat, createml or coco; found out by default.
        class_names: the names of the classes in order, in place of those of the files.
        skip_invalid: leave out what cannot be read or is wrong, and count it, in place of an error.

    Returns:
        The files that were written.

    Raises:
        UserError: the source is not such a data set, something in it is wrong, or a file exists or cannot be written.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48)).save(Path(folder) / "a.png")
        ...     _ = (Path(folder) / "a.txt").write_text("0 0.5 0.5 0.25 0.5")
        ...     _ = (Path(folder) / "classes.txt").write_text("cat")
        ...     data_convert(folder, Path(folder) / "coco.json").files[0].num_objects
        1
    """
    from stvit_cli.data.coco_index import UnusableAnnotationsError, read_boxes
    from stvit_cli.data.formats import ALL, SOURCES, read_format
    from stvit_cli.data.formats.writing import write_coco

    if format is not None and format not in SOURCES:
        raise UserError(f"format {format}: expected one of {', '.join(SOURCES)}.{did_you_mean(format, SOURCES)}")
    target = Path(output)
    if target.suffix != ".json":
        raise UserError(f"{target}: expected a name ending in .json.")
    kind, root = _format_of(Path(source).expanduser(), format)
    data = read_format(kind, root, class_names)
    targets = {split: target if split == ALL else target.with_stem(f"{target.stem}-{split}") for split in data.splits}
    for path in targets.values():
        require_new_file(path, ".json")
    try:
        invalid: Literal["stop", "skip"] = "skip" if skip_invalid else "stop"
        indexes = {split: read_boxes(boxes, invalid=invalid) for split, boxes in data.splits.items()}
    except UnusableAnnotationsError as error:
        raise UnusableAnnotationsError(error.found, "skip them, skip_invalid=True") from None
    for split, index in indexes.items():
        write_coco(index, targets[split])
    files = [_file(split, targets[split], index) for split, index in indexes.items()]
    return ConversionResult(data.kind, root, data.class_names, files)


def _file(split: str, path: Path, index: CocoIndex) -> ConvertedFile:
    objects, masks = int(index.num_objects.sum()), int(index.num_masks.sum())
    return ConvertedFile(split, path, index.folder, len(index), objects, masks, index.notes(of_training=True, masks=False))


def _format_of(source: Path, given: str | None) -> tuple[str, Path]:
    """Return format and folder of a data set."""
    from stvit_cli.data.formats import SOURCES
    from stvit_cli.data.layouts import find_layout

    if given is not None:
        if not source.exists():
            raise UserError(f"{printable(str(source))}: there is no such folder.{nearest_sibling(source)}")
        return given, source if source.is_dir() else source.parent
    layout = find_layout(source)
    if layout.kind not in SOURCES:
        raise UserError(f"{printable(str(source))}: found {layout.description}; boxes or polygons are expected.")
    return layout.kind, Path(str(layout.keys["data.dir"]))
