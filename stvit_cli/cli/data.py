"""``stvit data show/check/convert/shard``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.help import App
from stvit_cli.cli.options import Json, Overrides
from stvit_cli.cli.output import command, echo, print_table, reporting, showing_progress
from stvit_cli.errors import Interrupted
from stvit_cli.utils.text import first_few

NUM_CLASSES = 40
"""Rows of the table of classes."""

NUM_NAMED = 3
"""Findings of a kind that are printed; ``--json`` has all."""

data = App()
app.add_typer(data, name="data")

DataSource = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder, an annotation file, a run directory, or a recipe's name or file.",
        autocompletion=completion.recipes_and_runs,
    ),
]


@data.callback(invoke_without_command=True)
def about(context: typer.Context) -> None:
    """Look at data sets, check them, convert them, write them into shards.

    \b
    stvit data show FOLDER
    stvit data check FOLDER
    stvit data convert FOLDER coco.json
    stvit data shard FOLDER SHARDS
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data.command()
def show(source: DataSource, overrides: Overrides = None, json_file: Json = None) -> None:
    """Print what a data set holds: images, classes and their balance, sizes, and what is left out.

    \b
    stvit data show FOLDER
    stvit data show coco-mask-rcnn-1x data.dir=COCO --json -
    """
    with reporting(json_file) as report:
        summary = api.data_show(source, overrides or ())
        where = summary.data or "in the package"
        echo(f"{where}: {summary.task}, data.kind={summary.kind}" + (f": {summary.description}" if summary.description else ""))
        echo(*summary.notes, err=True)
        echo("")
        _print_splits(summary)
        echo("")
        _print_classes(summary)
        report(summary.to_dict())


@data.command()
def check(source: DataSource, overrides: Overrides = None, json_file: Json = None) -> None:
    """Open every image of a data set with its annotations, and name what is wrong.

    Images are duplicates if their decoded pixels are the same. Exit code 2 if something would end a training.

    \b
    stvit data check FOLDER
    stvit data check FOLDER data.num_workers=16 --json findings.json
    """
    with reporting(json_file) as report:
        with showing_progress() as advance:
            found = api.data_check(source, overrides or (), advance=advance)
        for (level, kind), count in found.counts.items():
            echo(f"{level}: {kind}: {count}")
            for finding in [finding for finding in found.findings if (finding.level, finding.kind) == (level, kind)][:NUM_NAMED]:
                first = finding.message.splitlines()[0]
                echo("  " + (first if finding.path and finding.path in first else f"{finding.path or finding.split}: {first}"))
            if count > NUM_NAMED:
                echo(f"  and {count - NUM_NAMED} more")
        num_errors, num_found = len(found.errors), len(found.findings)
        turned = f", {found.num_turned} of them turned upright by their EXIF orientation" if found.num_turned else ""
        echo(f"{found.num_images} images opened{turned}: {num_errors} errors, {num_found - num_errors} warnings.")
        report(found.to_dict())
    if num_errors:
        echo("A training or its evaluation would end at an error.", err=True)
        raise typer.Exit(2)


@data.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="FOLDER", help="The data set: its folder, or a file such as data.yaml.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT.json", help="The new COCO file; with a split OUT-train.json, OUT-val.json.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FORMAT", help="yolo, voc, roboflow, labelme, cvat, createml or coco; found out by default."
        ),
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out what cannot be read or is wrong, and count it.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Convert YOLO, Pascal VOC, LabelMe, CVAT, CreateML or an export of Roboflow into COCO's format.

    The images stay where they are. `stvit train` takes such folders directly too, without a conversion.

    \b
    stvit data convert FOLDER coco.json
    stvit data convert FOLDER coco.json --from voc --skip-invalid
    """
    with reporting(json_file) as report:
        result = api.data_convert(source, output, format, skip_invalid=skip_invalid)
        for file in result.files:
            echo(*file.notes, err=True)
        echo(f"{result.format}, {len(result.class_names)} classes: {first_few(list(result.class_names), 20)}")
        print_table(
            ["file", "images", "objects", "file names are relative to"],
            [[str(file.file), str(file.num_images), str(file.num_objects), str(file.image_folder)] for file in result.files],
        )
        report(result.to_dict())
        _print_training(result)


@data.command()
def shard(
    source: Annotated[str, typer.Argument(metavar="FOLDER", help="Folders by class, in train/ and val/ or side by side.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the shards; new, or of an interrupted call.")],
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="Largest size of a shard.")] = "256MB",
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Class after class, in place of a random order that is always the same.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Write a folder of images into tar shards of WebDataset's layout; the bytes of the images stay as they are.

    The same command continues after an interruption.

    \b
    stvit data shard FOLDER SHARDS
    stvit data shard FOLDER SHARDS --size 1GB
    """
    with reporting(json_file) as report:
        try:
            with showing_progress() as advance:
                result = api.data_shard(source, output, size=size, shuffle=not keep_order, advance=advance)
        except KeyboardInterrupt:
            echo("Stopped; the same command resumes.", err=True)
            raise Interrupted(signal.SIGINT) from None
        for split in result.splits:
            echo(f"{split.name}: {sum(split.counts)} images in {len(split.files)} shards, {first_few(list(split.files), 2)}")
        report(result.to_dict())
        echo("Next:", command("stvit", "train", "--data", result.output), err=True)


def _print_training(result: api.ConversionResult) -> None:
    """Print the command that trains on the files."""
    by_split = {file.split: file for file in result.files}
    train = by_split.get("train") or by_split.get("all")
    if train is None:
        return
    val = by_split.get("val") or by_split.get("test")
    keys = [f"detection.train_json={train.file.resolve()}", f"detection.train_images={train.image_folder.resolve()}"]
    if val is not None:
        keys += [f"detection.val_json={val.file.resolve()}", f"detection.val_images={val.image_folder.resolve()}"]
    else:
        keys.append("detection.val_json=null")
    recipe = "own-masks" if train.num_masks else "own-boxes"
    echo("Next:", command("stvit", "train", "--recipe", recipe, "--data", result.source, "data.kind=coco", *keys), err=True)


def _print_splits(summary: api.DataSummary) -> None:
    """Print a row for each split: images, objects, sizes."""
    has_objects = summary.unit == "objects"
    rows = []
    for split in summary.splits:
        sizes = [f"{width} x {height}" for width, height in split.sizes] or ["-"] * 3
        of = f"{split.num_sizes} of them" if split.num_sizes < split.num_images else ""
        rows.append([split.name, str(split.num_images), *([str(split.num_objects)] if has_objects else []), *sizes, of])
    columns = ["split", "images", *(["objects"] if has_objects else []), "smallest", "median", "largest", ""]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(columns, rows)


def _print_classes(summary: api.DataSummary) -> None:
    """Print a row for each class: its share of each split, the commonest of many first."""
    totals = [max(sum(split.counts), 1) for split in summary.splits]
    rows = []
    for label, name in enumerate(summary.class_names):
        cells = [_share(split.counts[label], total, summary.unit) for split, total in zip(summary.splits, totals, strict=True)]
        rows.append((sum(split.counts[label] for split in summary.splits), [name, *(cell for pair in cells for cell in pair)]))
    if len(rows) > NUM_CLASSES:
        rows.sort(key=lambda row: -row[0])
    columns = [column for split in summary.splits for column in (f"{split.name} {summary.unit}", "share")]
    print_table(["class", *columns], [cells for _, cells in rows[:NUM_CLASSES]])
    if len(rows) > NUM_CLASSES:
        echo(
            f"and {len(rows) - NUM_CLASSES} more classes with at most {rows[NUM_CLASSES][0]} {summary.unit} each (--json has all)"
        )
    for split in summary.splits:
        if split.num_unusable:
            echo(
                f"Warning: {split.name}: {split.num_unusable} label maps cannot be used; `stvit data check` names them", err=True
            )
        if split.num_counted + split.num_unusable < split.num_images:
            echo(f"{split.name}: pixels of {split.num_counted} label maps, evenly spaced", err=True)


def _share(count: int, total: int, unit: str) -> tuple[str, str]:
    return f"{count / 1e6:.2f} M" if unit == "pixels" and count >= 1e6 else str(count), f"{100 * count / total:.1f} %"
