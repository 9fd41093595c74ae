"""Where a YOLO data set has its classes, images and splits: data.yaml, Darknet's lists, or folders alone.

What Ultralytics and Roboflow write is found as they find it: ``path`` is that of another machine, ``../train/images`` is meant
from a folder below, lists have paths from Darknet's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from stvit_cli.data.file_listing import list_files
from stvit_cli.data.formats.collection import ALL, Found
from stvit_cli.data.formats.files import ImageFinder, by_split, read_text, require_one_kind
from stvit_cli.data.images import ENDINGS
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt", "labels.txt", "predefined_classes.txt")
"""Files with a class name in each line, as labelImg, CVAT, Roboflow and others write them."""

NOT_LABELS = frozenset({*NAME_FILES, "train.txt", "val.txt", "valid.txt", "test.txt", "notes.txt", "requirements.txt"})
"""Text files beside labels that are none; Roboflow's README.*.txt too."""

_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLITS = (("train", ("train",)), ("val", ("val", "valid", "validation")), ("test", ("test",)))


@dataclass
class YoloLayout:
    """A YOLO data set's files.

    Attributes:
        names: the classes by id; None where no file names them.
        names_from: the file that does.
        splits: the image files, by split, and what was noticed in finding them.
        num_keypoint_values: numbers after the box in the lines of a pose data set.
    """

    names: list[str] | None
    names_from: str
    splits: dict[str, Found]
    num_keypoint_values: int = 0
    images: dict[str, list[Path]] = field(default_factory=dict)


def find_yolo(root: Path) -> YoloLayout:
    """Find the files of a YOLO data set. Raises UserError where a file or folder that is named is missing."""
    path = yaml_of(root)
    if path is not None:
        return _from_yaml(root, path, read_yaml(path))
    names, source = _names_beside(root)
    layout = YoloLayout(names, source, {})
    lists = _darknet_lists(root)
    if lists:
        for split, file in lists.items():
            layout.splits[split] = Found(file)
            layout.images[split] = list(_listed(file, root, layout.splits[split]))
    else:
        _by_folders(root, layout)
    return layout


def yaml_of(root: Path) -> Path | None:
    """Return the YAML file in a folder that names the classes, None where there is none. Raises UserError for two."""
    found = [root / name for name in _YAMLS if (root / name).is_file()]
    if not found:
        others = sorted(path for path in root.iterdir() if path.suffix in (".yaml", ".yml") and path.is_file())
        found = [path for path in others if "names" in read_yaml(path, strict=False)]
    if len(found) > 1:
        raise UserError(f"{root}: {first_few([path.name for path in found])} all name classes: which one describes the data?")
    return found[0] if found else None


def read_yaml(path: Path, *, strict: bool = True) -> dict[str, Any]:
    """Return the mapping of a YAML file; with ``strict=False`` an empty one where it holds something else."""
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        if not strict:
            return {}
        raise UserError(f"{path}: not valid YAML: {printable(' '.join(str(error).split())[:200])}.") from None
    if isinstance(content, dict):
        return content
    if strict:
        raise UserError(f"{path}: expected names, train and val, as in Ultralytics' data.yaml.")
    return {}


def _from_yaml(root: Path, path: Path, content: dict[str, Any]) -> YoloLayout:
    layout = YoloLayout(_yaml_names(path, content), path.name, {}, _keypoint_values(path, content))
    for split, keys in _SPLITS:
        entries = next((content[key] for key in keys if content.get(key)), None)
        if entries is None:
            continue
        entries = entries if isinstance(entries, list) else [entries]
        places = [_place(root, content.get("path"), str(entry)) for entry in entries]
        missing = [str(entry) for entry, place in zip(entries, places, strict=True) if place is None]
        if missing and split == "test":
            layout.splits.setdefault("train", Found(path)).remarks.append(f"{path.name}: test: there is no {missing[0]}")
            continue
        if missing:
            raise UserError(
                f"{path}: {split}: there is no {printable(missing[0])}, neither as it is written nor below {root}.\n"
                "Expected a folder of images or a list of them (.txt), relative to the folder of this file."
            )
        found = layout.splits.setdefault(split, Found(path))
        layout.images[split] = [image for place in places if place is not None for image in _images_at(place, root, found)]
    if not any(layout.images.values()):
        layout.images.clear()
        _by_folders(root, layout)
    return layout


def _yaml_names(path: Path, content: dict[str, Any]) -> list[str] | None:
    names = content.get("names")
    if isinstance(names, dict):
        keys = {key if type(key) is int else int(key) if str(key).isdigit() else -1: name for key, name in names.items()}
        if sorted(keys) != list(range(len(names))):
            raise UserError(f"{path}: names: found the ids {first_few(list(map(str, names)))}, expected 0 to {len(names) - 1}.")
        return [str(keys[number]) for number in sorted(keys)]
    if isinstance(names, list):
        return [str(name) for name in names]
    if names is not None:
        raise UserError(f"{path}: names: found {printable(repr(names))[:60]}, expected a list, or a mapping of ids to names.")
    return None


def _keypoint_values(path: Path, content: dict[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)):
        raise UserError(f"{path}: kpt_shape: found {printable(repr(shape))[:60]}, expected [number of keypoints, 2 or 3].")
    return int(shape[0] * shape[1])


def _place(root: Path, base: Any, entry: str) -> Path | None:
    """Return the folder or list that an entry of data.yaml means, None where there is none."""
    bases = [root]
    if isinstance(base, str):
        bases = [place for place in (Path(base).expanduser(), root / base) if place.is_dir()] + bases
    tail = entry
    while tail.startswith(("../", "./")):
        tail = tail[tail.index("/") + 1 :]
    for candidate in (*(place / tail for place in bases), *(place / entry for place in bases)):
        if candidate.exists():
            return Path(os.path.normpath(candidate))
    return _below(root, entry)


def _below(root: Path, entry: str) -> Path | None:
    """Return what a path of another machine ends in, if that is below ``root``: ``/content/my/train/images``."""
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    return next((root.joinpath(*parts[i:]) for i in range(len(parts)) if root.joinpath(*parts[i:]).exists()), None)


def _images_at(place: Path, root: Path, found: Found) -> Iterator[Path]:
    if place.is_file():
        yield from _listed(place, root, found)
    else:
        yield from (place / path for path in sorted(list_files(place, endings=ENDINGS).paths))


def _listed(file: Path, root: Path, found: Found) -> Iterator[Path]:
    """Yield the images that a list names; those that are missing are noted."""
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not (entry := line.strip()):
            continue
        places = (file.parent / entry, root / entry)
        path = next((place for place in places if place.is_file()), None) or _below(root, entry)
        if path is None:
            found.fault(f"{file}, line {number}", "on an image that is missing", f"there is no image {printable(entry)}")
        else:
            yield Path(os.path.normpath(path))


def _names_beside(root: Path) -> tuple[list[str] | None, str]:
    """Return the classes of a file such as classes.txt, and its name."""
    folders = [root, *(entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith("."))]
    folders += [entry for folder in folders[1:] for entry in sorted(folder.iterdir()) if entry.is_dir()]
    for folder in folders:
        for file in (*(folder / name for name in NAME_FILES), *sorted(folder.glob("*.names"))):
            if file.is_file():
                return [line.strip() for line in read_text(file).splitlines() if line.strip()], str(file.relative_to(root))
    return None, ""


def _darknet_lists(root: Path) -> dict[str, Path]:
    """Return Darknet's lists of images by split: those that a .data file names, or train.txt and its like."""
    for file in sorted(root.glob("*.data")):
        pairs = (line.partition("=") for line in read_text(file).splitlines())
        values = {key.strip(): value.strip() for key, equals, value in pairs if equals}
        lists = {split: values[key] for split, keys in _SPLITS for key in keys if key in values}
        found = {split: place for split, entry in lists.items() if (place := _place(root, None, entry)) and place.is_file()}
        if found:
            return found
    return {split: root / f"{key}.txt" for split, keys in _SPLITS for key in keys if (root / f"{key}.txt").is_file()}


def _by_folders(root: Path, layout: YoloLayout) -> None:
    """Take all images below ``root``, by the split that their folders are named after."""
    splits = by_split(root, ENDINGS)
    require_one_kind(root, splits, "images")
    for split, paths in splits.items():
        layout.splits.setdefault(split, Found(root))
        layout.images[split] = [root / path for path in paths]


def is_label_file(name: str) -> bool:
    """Return whether a text file of this name may be a label file."""
    return name.lower() not in NOT_LABELS and not name.lower().startswith("readme")


def looks_like_yolo(root: Path) -> bool:
    """Return whether a folder holds a YOLO data set: data.yaml with names, or text files of numbers beside or as images."""
    if yaml_of(root) is not None or list(root.glob("*.data")):
        return True
    labels = [path for path in list_files(root, endings=(".txt",)).paths if is_label_file(path.rpartition("/")[2])]
    finder = ImageFinder(root) if labels else None
    for path in sorted(labels)[:50]:
        lines = read_text(root / path).split("\n", 1)
        if finder is not None and finder.by_stem(path, ALL) is not None and _numbers(lines[0].split()):
            return True
    return False


def _numbers(values: Sequence[str]) -> bool:
    """Whether the values of a line are a class id and coordinates."""
    try:
        return len(values) >= 5 and len([float(value) for value in values]) >= 5
    except ValueError:
        return False
