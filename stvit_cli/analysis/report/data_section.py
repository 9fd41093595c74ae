"""The data of a run: how many images and objects of each class, what was left out, and augmented training samples."""

from __future__ import annotations

from collections.abc import Sequence

from stvit_cli.analysis.dataset.describe import SplitSummary, describe
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks import registry
from stvit_cli.tasks.base import Task
from stvit_cli.tasks.data_view import DataView
from stvit_cli.tasks.report_parts import (
    ChartPart,
    Column,
    GalleryPart,
    Part,
    ReportSection,
    Series,
    ShownImage,
    TablePart,
    TextPart,
)

NUM_SAMPLES = 12
"""Augmented training samples that are shown."""

BALANCE_FROM = 8
"""Classes from which on their balance is a chart too."""


def data_section(recipe: Recipe, view: DataView | UserError, task: Task | UserError) -> ReportSection:
    """Return the section.

    Args:
        recipe: of the run.
        view: its data, or why they cannot be looked at.
        task: as it is trained, for the augmented samples, or why it cannot be built.
    """
    source = f"{recipe.data.dir or 'in the package'}, data.kind={recipe.data.kind}"
    parts: list[Part] = []
    if isinstance(view, UserError):
        parts.append(TextPart(["The data cannot be read now:", *str(view).splitlines()], kind="warning"))
    else:
        parts += _numbers(view)
    if isinstance(task, UserError):
        if not isinstance(view, UserError):
            parts.append(TextPart(["No training samples are shown:", *str(task).splitlines()], kind="warning"))
    else:
        parts += _samples(recipe, task)
    return ReportSection("data", "Data", parts, source)


def _numbers(view: DataView) -> list[Part]:
    splits = describe(view)
    has_objects = view.unit == "objects"
    columns = [Column("split"), Column("images", "count"), *([Column("objects", "count")] if has_objects else [])]
    columns += [Column(name) for name in ("smallest", "median", "largest")]
    rows = [[split.name, split.num_images, *([split.num_objects] if has_objects else []), *_sizes(split)] for split in splits]
    parts: list[Part] = [TablePart(columns, rows, "Images", "Sizes are width x height in pixels.")]
    if view.notes:
        parts.append(TextPart(list(view.notes)))
    return [*parts, *_classes(view, splits)]


def _sizes(split: SplitSummary) -> list[str]:
    return [f"{width} x {height}" for width, height in split.sizes] or ["", "", ""]


def _classes(view: DataView, splits: Sequence[SplitSummary]) -> list[Part]:
    totals = [max(sum(split.counts), 1) for split in splits]
    columns = [Column("class")]
    for split in splits:
        columns += [Column(f"{split.name} {view.unit}", "count"), Column(f"{split.name} %", "percent")]
    rows: list[list[str | float | int | None]] = []
    for label, name in enumerate(view.class_names):
        cells = [(split.counts[label], 100 * split.counts[label] / total) for split, total in zip(splits, totals, strict=True)]
        rows.append([name, *(cell for pair in cells for cell in pair)])
    counted = [split for split in splits if split.num_counted < split.num_images]
    note = "; ".join(f"{split.name}: of {split.num_counted} label maps, evenly spaced" for split in counted)
    absent = [f"{split.name}: no {view.unit} of {sum(not count for count in split.counts)} classes" for split in splits]
    missing = [line for line, split in zip(absent, splits, strict=True) if not all(split.counts)]
    parts: list[Part] = [TablePart(columns, rows, "Class balance", note)]
    if missing:
        parts.append(TextPart(missing, kind="warning"))
    if len(rows) >= BALANCE_FROM and splits:
        ordered = sorted(splits[0].counts, reverse=True)
        series = Series(splits[0].name, list(range(1, len(ordered) + 1)), ordered, "bars" if len(ordered) <= 200 else "line")
        parts.append(ChartPart("Class balance", "class, the most frequent first", view.unit, [series]))
    return parts


def _samples(recipe: Recipe, task: Task) -> list[Part]:
    draw = registry.get(recipe.task).sample_sheet
    if draw is None:
        return []
    try:
        samples: Sequence[ShownImage] = draw(task, NUM_SAMPLES)
    except UserError as error:
        return [TextPart(["No training samples are shown:", *str(error).splitlines()], kind="warning")]
    note = registry.get(recipe.task).samples_note
    return [GalleryPart("Training samples", samples, len(samples), note)]
