"""Recognition of the layout of a user's data set, by names and the beginning of files. Imports no torch and no recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stvit_cli.data import layout_classes as classes
from stvit_cli.data.folder_survey import Survey, start_of, survey
from stvit_cli.data.layout import Given, Layout, layout, which
from stvit_cli.data.layout_annotations import find_annotations, is_createml, is_cvat, is_labelme, is_voc
from stvit_cli.data.layout_coco import find_coco, is_coco
from stvit_cli.data.layout_maps import find_maps
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling
from stvit_cli.utils.text import printable

__all__ = ["Layout", "find_layout"]

NESTED = 2
"""Folders that hold nothing but one folder, as archives unpack into, are entered at most this often if nothing else is found."""


def find_layout(folder: str | Path, given: Given | None = None, *, task: str | None = None) -> Layout:
    """Find out what kind of data set a folder holds.

    Args:
        folder: the data set's folder, or its annotation file: COCO's JSON, a table, CVAT's XML, YOLO's data.yaml.
        given: recipe keys that the user has set, by dotted name: they answer what is ambiguous otherwise, such as ``data.kind``
            and ``detection.train_json``.
        task: where a folder could be several things, that of this task is meant.

    Returns:
        The task, the kind, one line of description and the recipe keys that follow.

    Raises:
        UserError: there is no such folder, nothing in it is recognized, or it could be several things; the message then asks a
            question that one key answers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         (Path(folder) / name / "1.jpg").touch()
        ...     print(find_layout(folder).description)
        folders by class, a part is held out (2 classes: cat, dog)
    """
    given = given or {}
    root = Path(folder).expanduser()
    if root.is_file():
        return _of_file(root, given)
    if not root.is_dir():
        raise UserError(f"{printable(str(root))}: there is no such folder or file.{nearest_sibling(root)}")
    found = survey(root)
    layouts = _layouts(found, given)
    inner = found
    for _ in range(NESTED):
        if layouts or len(inner.top.folders) != 1 or inner.top.num_images:
            break
        inner = survey(inner.root / inner.top.folders[0])
        layouts = _layouts(inner, given)
    found = inner if layouts else found
    return _only([layout for layout in layouts if layout.task == task] or layouts, found, given)


def _layouts(found: Survey, given: Given) -> list[Layout]:
    """Return what a folder could be."""
    wanted = given.get("data.kind")
    annotated = [
        *_wanted(wanted, ("coco",), lambda: find_coco(found, given)),
        *_wanted(wanted, ("yolo", "voc", "labelme", "createml", "cvat"), lambda: find_annotations(found)),
        *_wanted(wanted, ("ade20k",), lambda: find_maps(found, given)),
        *_wanted(wanted, ("idx",), lambda: classes.find_idx(found)),
        *_wanted(wanted, ("shards",), lambda: classes.find_shards(found, parquet=wanted == "shards")),
    ]
    annotated = [layout for layout in annotated if wanted is None or layout.kind == wanted]
    tables = _wanted(wanted, ("table",), lambda: classes.find_tables(found, any_table=wanted == "table"))
    folders: list[Layout] = []
    if not annotated:  # images of an annotated set lie in folders too, which are no classes
        folders = _wanted(wanted, ("imagefolder",), lambda: classes.find_class_folders(found))
    return annotated + tables + folders


def _only(layouts: list[Layout], found: Survey, given: Given) -> Layout:
    """Return the only one of the layouts. Raises UserError where there is none, or several."""
    wanted = given.get("data.kind")
    if len(layouts) == 1:
        return layouts[0]
    if layouts:
        raise which(
            found.root,
            f"it could be {' or '.join(layout.description.partition(',')[0] for layout in layouts[:4])}",
            "data.kind",
            [layout.kind for layout in layouts],
        )
    if wanted is not None:
        raise UserError(
            f"{printable(str(found.root))}: nothing in it is of data.kind={wanted}. Leave data.kind out to see what is found."
        )
    raise classes.refuse_without_labels(found)


def _wanted(wanted: object, kinds: tuple[str, ...], find: Callable[[], list[Layout]]) -> list[Layout]:
    """Return what ``find`` finds, if its kinds are wanted or any is."""
    return find() if wanted is None or wanted in kinds else []


def _of_file(path: Path, given: Given) -> Layout:
    """Return the layout of the data set that an annotation file belongs to."""
    ending, start = path.suffix.lower(), start_of(path)
    folder = path.parent
    if ending == ".json" and is_coco(start):
        return _of_coco_file(path, given)
    found = survey(folder)
    kinds: Mapping[str, bool] = {
        "createml": ending == ".json" and is_createml(start),
        "labelme": ending == ".json" and is_labelme(start),
        "cvat": ending == ".xml" and is_cvat(start),
        "voc": ending == ".xml" and is_voc(start),
        "yolo": ending in (".yaml", ".yml"),
        "table": ending in classes.TABLES or (ending == ".jsonl" and classes.is_table(path)),
        "idx": "ubyte" in path.name.lower(),
    }
    if ending == ".tar":
        return layout("classification", "shards", path, f"a tar shard of images, {printable(path.name)}")
    kind = next((kind for kind, fits in kinds.items() if fits), None)
    if kind == "table":
        return layout("classification", "table", path, f"a table of images and labels, {printable(path.name)}")
    if kind is None:
        raise UserError(
            f"{printable(str(path))}: not an annotation file that is recognized.\n"
            "Expected COCO's JSON, a CSV or Parquet table, CVAT's XML, YOLO's data.yaml, or the folder of a data set."
        )
    given = {**given, "data.kind": kind}
    return _only(_layouts(found, given), found, given)


def _of_coco_file(path: Path, given: Given) -> Layout:
    """Return the layout of one COCO file: its images are below its folder, or below the folder above."""
    last: UserError | None = None
    for root in (path.parent, path.resolve().parent.parent):
        name = path.resolve().relative_to(root.resolve()).as_posix()
        try:
            return find_coco(survey(root), {"detection.val_json": None, **given, "detection.train_json": name})[0]
        except UserError as error:
            last = last or error
    assert last is not None
    raise last
