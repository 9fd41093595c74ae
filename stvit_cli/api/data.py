"""Data sets looked at before a training: `data_show` and `data_check`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvit_cli.api.overrides import Overrides, as_words
from stvit_cli.api.own_data import keys_of, new_recipe, with_layout
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling
from stvit_cli.utils.text import did_you_mean, printable

if TYPE_CHECKING:
    from stvit_cli.analysis.dataset.describe import SplitSummary
    from stvit_cli.recipe import Recipe
    from stvit_cli.tasks.data_view import DataView, Finding

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class DataSummary:
    """What a data set holds.

    Attributes:
        data: its folder, as ``data.dir`` has it; None for the digits in the package.
        task: classification, detection or segmentation.
        kind: ``data.kind``.
        description: what was found in the folder, one line; empty where a recipe says it.
        class_names: by label.
        unit: what is counted by class: images, objects or pixels.
        splits: train and val; see `analysis.dataset.describe.SplitSummary`.
        notes: lines on what was chosen and what is left out.
    """

    data: str | None
    task: str
    kind: str
    description: str
    class_names: Sequence[str]
    unit: str
    splits: Sequence[SplitSummary]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit data show --json` writes them; counts by name of the class."""
        splits = [
            {
                **asdict(split),
                "counts": dict(zip(self.class_names, split.counts, strict=True)),
                "sizes": [list(size) for size in split.sizes],
            }
            for split in self.splits
        ]
        fields = {name: getattr(self, name) for name in ("data", "task", "kind", "description", "unit")}
        return {**fields, "class_names": list(self.class_names), "splits": splits, "notes": list(self.notes)}


@dataclass(frozen=True)
class DataReport:
    """What a check of every image found.

    Attributes:
        data: as in `DataSummary`, as ``task`` and ``kind`` are.
        num_images: that were opened, of train and val.
        num_turned: of them, turned upright by their EXIF orientation.
        findings: errors, which would end a training or its evaluation, and warnings; see `tasks.data_view.Finding`.
    """

    data: str | None
    task: str
    kind: str
    num_images: int
    num_turned: int
    findings: Sequence[Finding]

    @property
    def errors(self) -> list[Finding]:
        """The findings that would end a training or its evaluation."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """Number of findings by level and kind, errors and the commonest first."""
        counted = Counter((finding.level, finding.kind) for finding in self.findings)
        return dict(sorted(counted.items(), key=lambda item: (item[0][0], -item[1], item[0][1])))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit data check --json` writes them."""
        fields = {name: getattr(self, name) for name in ("data", "task", "kind", "num_images", "num_turned")}
        return {**fields, "num_errors": len(self.errors), "findings": [asdict(finding) for finding in self.findings]}


def data_show(data: AnyPath, overrides: Overrides = ()) -> DataSummary:
    """Describe a data set: images, objects or labelled pixels by class, sizes, and what is left out.

    Args:
        data: a folder, an annotation file, the directory of a run, or a recipe.
        overrides: recipe keys to set, such as ``data.kind`` where a folder could be several.

    Raises:
        UserError: there is no such data set, it is not recognized, or it cannot be used.

    Example:
        >>> summary = data_show("quickstart")
        >>> [(split.name, split.num_images) for split in summary.splits]
        [('train', 1437), ('val', 360)]
    """
    from stvit_cli.analysis.dataset.describe import describe

    recipe, description = _recipe_of(data, overrides)
    view = _view(recipe)
    identity = (recipe.data.dir, recipe.task, recipe.data.kind)
    return DataSummary(*identity, description, view.class_names, view.unit, describe(view), view.notes)


def data_check(
    data: AnyPath, overrides: Overrides = (), *, advance: Callable[[int, int], None] = lambda done, total: None
) -> DataReport:
    """Open every image of a data set, with its annotations, and list what is wrong.

    Found are images that cannot be decoded, images with the same pixels within a split and in both, annotations that cannot be
    used, boxes that look wrong (without area, tiny, beyond the image, of the whole image, twice there), and label maps of another
    size or with numbers that are no class.

    Args:
        data: as for `data_show`.
        overrides: recipe keys to set; ``data.num_workers`` is the number of processes.
        advance: called with the number of images done and their total.

    Raises:
        UserError: there is no such data set, or nothing of it can be opened.

    Example:
        >>> report = data_check("quickstart", {"data.num_workers": 0})
        >>> report.num_images, report.errors
        (1797, [])
    """
    from stvit_cli.analysis.dataset.check import check

    recipe, _ = _recipe_of(data, overrides)
    view = _view(recipe)
    findings, num_turned = check(view, num_workers=recipe.data.num_workers, advance=advance)
    return DataReport(recipe.data.dir, recipe.task, recipe.data.kind, sum(map(len, view.sets)), num_turned, findings)


def _view(recipe: Recipe) -> DataView:
    from stvit_cli import tasks

    view_data = tasks.registry.get(recipe.task).view_data
    if view_data is None:
        raise UserError(f"task {recipe.task}: its data cannot be shown or checked.")
    return view_data(recipe)


def _recipe_of(data: AnyPath, overrides: Overrides) -> tuple[Recipe, str]:
    """Return the recipe that sees a data set, and what was found where it is not that of the user."""
    from stvit_cli.recipe import io as recipe_io

    path, words = Path(data).expanduser(), as_words(overrides)
    if (path / "recipe.yaml").is_file() and (path / "environment.json").is_file():
        return recipe_io.load(path / "recipe.yaml", words), ""
    if path.exists() and not _is_recipe(path):
        return _found(path, words)
    if not path.exists():
        name, known = os.fspath(data), [file.stem for file in recipe_io.list_recipes()]
        if name not in known:
            guess = nearest_sibling(path) or did_you_mean(name, known)
            raise UserError(f"{printable(name)}: there is no such folder, file or recipe.{guess}")
        return new_recipe(name, words), ""
    return new_recipe(path, words), ""


def _is_recipe(path: Path) -> bool:
    """Whether a file is a recipe; YOLO's data.yaml, which names classes, is none."""
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    from stvit_cli.data.formats.yolo_layout import read_yaml

    return "names" not in read_yaml(path, strict=False)


def _found(path: Path, words: list[str]) -> tuple[Recipe, str]:
    """Return the recipe of a data set whose layout is found out."""
    from stvit_cli.data.layouts import find_layout
    from stvit_cli.recipe import io as recipe_io

    given = keys_of(words)
    layout = find_layout(path, given)
    keys = with_layout(words, layout, given, skip_unreadable=True)  # a check names the label maps that cannot be read
    recipe = recipe_io.from_text(f"task: {layout.task}\n", keys, source=str(path), name="data")
    return recipe_io.with_absolute_paths(recipe), layout.description
