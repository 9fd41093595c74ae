"""Images with classes in a folder: a folder for each class, a table of paths and labels, MNIST's IDX files."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from stvit_cli.data.folder_survey import Folder, Survey, start_of
from stvit_cli.data.images import ENDINGS
from stvit_cli.data.layout import Layout, layout
from stvit_cli.data.shards.storage import PARQUET, TAR
from stvit_cli.data.splits import find_splits
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable

TABLES = (".csv", ".tsv", ".parquet")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Hugging Face's names."""

NO_CLASSES = frozenset({"images", "image", "imgs", "img", "jpegimages", "photos", "labels", "masks", "annotations"})
"""Names of folders that hold images of a set rather than of a class."""

_IDX = re.compile(r"(images|labels)[-.]?idx[13]-ubyte(\.gz)?$|\.idx[13]?(\.gz)?$", re.IGNORECASE)
_PATH_COLUMN = re.compile(r"(image|file|img|photo)s?([ _-]?(path|name|file|id|url))?|(file)?path|name|id", re.IGNORECASE)


def find_class_folders(survey: Survey) -> list[Layout]:
    """Return the layout of folders by class, split or not; an empty list where there are none.

    Raises:
        UserError: folders look like splits and cannot be, see `find_splits`.
    """
    splits = find_splits(survey.root)
    split = splits.train if splits.train is not None else splits.val
    names = _classes(survey, split or "")
    if len(names) < 2:
        return []
    count = len(survey.folders[split or ""].folders)
    classes = f"{count} classes: {', '.join(map(printable, names[:3]))}{', ...' if count > 3 else ''}"
    if splits.train is not None and splits.val is not None:
        return [
            layout(
                "classification", "imagefolder", survey.root, f"folders by class, {splits.train}/ and {splits.val}/ ({classes})"
            )
        ]
    if split is not None:  # one split alone: the folders in it are the data
        found = f"folders by class in {split}/, a part is held out ({classes})"
        return [layout("classification", "imagefolder", survey.root / split, found)]
    return [layout("classification", "imagefolder", survey.root, f"folders by class, a part is held out ({classes})")]


def _classes(survey: Survey, path: str) -> list[str]:
    """Return the first names of the folders in a folder that hold images."""
    folder = survey.folders.get(path)
    if folder is None:
        return []
    names = [name for name in folder.folders if folder.join(name) in survey.folders and survey.has_images(folder.join(name))]
    return [] if all(name.lower() in NO_CLASSES for name in names) else names


def find_tables(survey: Survey, *, any_table: bool = False) -> list[Layout]:
    """Return the layout of tables of paths and labels: CSV, TSV, Parquet, Hugging Face's metadata files.

    Args:
        survey: of the folder.
        any_table: take a table of the folder for one of images too whose columns and cells do not look like it.
    """
    tables = [folder.join(name) for folder in survey for name in folder.files if _is_table(survey.root, folder, name)]
    if any_table and not tables:
        tables = survey.top.with_ending(*TABLES)
    if not tables:
        return []
    return [layout("classification", "table", survey.root, f"a table of images and labels, {first_few(tables, 2)}")]


def is_table(path: Path) -> bool:
    """Return whether a file is a table of images and labels, by its first lines."""
    if path.suffix.lower() == ".parquet":
        return start_of(path, 4) == b"PAR1"
    text = start_of(path).decode("utf-8", "replace")
    if path.suffix.lower() == ".jsonl":
        return '"file_name"' in text.partition("\n")[0]
    lines = text.splitlines()[:3]
    if len(lines) < 2:
        return False
    try:
        rows = list(csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else _delimiter(lines[0])))
    except csv.Error:
        return False
    if min(map(len, rows)) < 2:
        return False
    names_files = any(cell.strip().lower().endswith(ENDINGS) for cell in rows[1])
    return names_files or any(_PATH_COLUMN.fullmatch(cell.strip()) and "image" in cell.lower() for cell in rows[0])


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _is_table(root: Path, folder: Folder, name: str) -> bool:
    lower = name.lower()
    if lower in METADATA:
        return is_table(root / folder.join(name))
    if not lower.endswith(TABLES) or folder.path.count("/") > 0:
        return False
    is_data = folder.path == "" or os.path.basename(folder.path).lower() == "data"
    return is_data and is_table(root / folder.join(name))


def find_idx(survey: Survey) -> list[Layout]:
    """Return the layout of IDX files, as MNIST and Fashion-MNIST have them."""
    for folder in survey:
        names = [name for name in folder.files if _IDX.search(name)]
        if len(names) >= 2:
            where = survey.root / folder.path if folder.path else survey.root
            return [layout("classification", "idx", where, f"IDX files, {first_few(names, 2)}")]
    return []


def find_shards(survey: Survey, *, parquet: bool = False) -> list[Layout]:
    """Return the layout of tar shards with images.

    Args:
        survey: of the folder.
        parquet: take Parquet files for shards too, which are tables otherwise.
    """
    endings = (TAR, PARQUET) if parquet else (TAR,)
    names = [folder.join(name) for folder in survey for name in folder.with_ending(*endings)]
    if not names or (survey.num_images and not parquet):
        return []
    return [layout("classification", "shards", survey.root, f"shards, {first_few(names, 2)}")]


def refuse_without_labels(survey: Survey) -> UserError:
    """Return the error about a folder in which no layout was found."""
    root = printable(str(survey.root))
    kinds = (
        "Expected a folder for each class, COCO's JSON, YOLO, Pascal VOC, LabelMe, CVAT or CreateML annotations,\n"
        "images and label maps (images/ and masks/), or a CSV or Parquet table of paths and labels."
    )
    archives = [name for folder in survey for name in folder.with_ending(".zip", ".tgz", ".tar.gz", ".rar", ".7z")]
    if survey.num_images == 0:
        holds = f"the archive {printable(archives[0])}: unpack it first" if archives else "no images"
        return UserError(f"{root} holds {holds}.\n{kinds}")
    many = "an image" if survey.num_images == 1 else f"{survey.num_images} images"
    paths = sorted(folder.path for folder in survey if folder.num_images)
    folders = f" in {first_few([f'{path}/' for path in paths], 3)}" if paths != [""] else ""
    said = f"{root} has {many}{folders} but no labels that are recognized."
    if tables := survey.top.with_ending(*TABLES):
        said += f"\nIf {printable(tables[0])} has them, add data.kind=table."
    elif len(paths) == 1 and paths != [""]:
        said += "\nOf folders by class there must be two or more, side by side."
    return UserError(f"{said}\n{kinds}")
