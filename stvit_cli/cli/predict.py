"""``stvit predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app
from stvit_cli.cli.options import BatchSize, Dtype, Json, Precision, Weights
from stvit_cli.cli.output import echo, reporting, require_writable_table
from stvit_cli.cli.parquet_output import note, parquet_progress, print_files
from stvit_cli.errors import UserError
from stvit_cli.utils.files import require_writable_folder

if TYPE_CHECKING:
    from stvit_cli.tasks.base import ImagePrediction


@app.command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Images, folders of images; with --parquet also lists of paths (.txt) and shards."
        ),
    ],
    weights: Weights,
    top: Annotated[int, typer.Option(metavar="K", min=1, help="A classifier: how many classes to name.")] = 1,
    score_threshold: Annotated[
        float,
        typer.Option(
            metavar="P", min=0, max=1, help="A detector, or a classifier of several labels: leave out what is less sure."
        ),
    ] = 0.5,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write the images here, with what was found.")] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Also write a table, a row for each class or box: a .csv or .parquet file."),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="For millions: only write Parquet files here. The same command resumes; torchrun shares."
        ),
    ] = None,
    dtype: Dtype = "fp32",
    batch_size: BatchSize = None,
    precision: Precision = "fp32",
    json_file: Json = None,
) -> None:
    """Say what images show: a class, objects with boxes and masks, or a class for every pixel, by what the weights are for.

    \b
    stvit predict some.png --weights runs/RUN
    stvit predict FOLDER --weights runs/RUN --top 5 --json result.json
    stvit predict FOLDER --weights runs/RUN --csv result.csv
    stvit predict some.jpg --weights stvit-s.pth --output drawn
    stvit predict some.jpg --weights runs/DETECTOR --score-threshold 0.7 --output drawn --json -
    stvit predict some.jpg --weights runs/SEGMENTER --output drawn     (the label map too)
    stvit predict some.jpg --weights model.onnx                        (a file of `stvit export`)
    stvit predict 'shards/train-{000..127}.tar' --weights runs/RUN --top 5 --parquet predicted
    torchrun --nproc-per-node 8 -m stvit_cli predict FOLDER --weights runs/RUN --parquet predicted
    """
    if parquet is not None:
        if output is not None or csv_file is not None:
            raise UserError("--parquet writes neither images nor a CSV file; leave out --output and --csv.")
        with reporting(json_file) as report, parquet_progress("parquet") as progress:
            files = api.predict(
                weights,
                paths,
                parquet,
                top=top,
                score_threshold=score_threshold,
                dtype=dtype,
                precision=precision,
                batch_size=batch_size,
                say=note,
                advance=progress,
            )
            report(files.to_dict())
        print_files(files)
        return
    _require_images(paths)
    for option, value in (("--dtype", dtype != "fp32"), ("--batch-size", batch_size is not None)):
        if value:
            raise UserError(f"{option} is for Parquet files: add --parquet DIR.")
    from stvit_cli.data.drawing import drawn_name
    from stvit_cli.data.image_paths import list_images
    from stvit_cli.tasks.tables import write_rows

    if output is not None:
        require_writable_folder(output)
    if csv_file is not None:
        require_writable_table(csv_file)
    with reporting(json_file) as report:
        images = list_images([Path(path) for path in paths], lambda line: typer.echo(line, err=True))
        trained = api.load(weights)
        results: list[ImagePrediction] = []
        unread: list[str] = []
        unanswered: list[str] = []
        undrawn: list[str] = []
        found = trained.iter_predictions(images, top=top, score_threshold=score_threshold, precision=precision)
        for number, (image, result) in enumerate(zip(images, found, strict=True)):
            results.append(result)
            if result.error is not None:
                (unanswered if result.is_unanswered else unread).append(result.error)
                continue
            echo(f"{image}  {result.summary()}")
            if output is not None:
                undrawn += _draw(result, image, output / drawn_name(number, image))
        report([result.to_dict() for result in results])
        if csv_file is not None:
            write_rows(csv_file, [row for result in results for row in result.to_rows()])
    if unread or unanswered or undrawn:
        raise UserError(_failures(len(results), unread, unanswered, undrawn))


def _require_images(paths: Sequence[str]) -> None:
    """Raise UserError for lists and shards, whose predictions are Parquet files."""
    from stvit_cli.data.inputs import LIST_ENDINGS
    from stvit_cli.data.shards.storage import PARQUET, TAR

    for path in paths:
        if "://" in path or path.lower().endswith((*LIST_ENDINGS, TAR, PARQUET)):
            raise UserError(f"{path}: lists of paths and shards are predicted into Parquet files: add --parquet DIR.")


def _failures(num_images: int, unread: list[str], unanswered: list[str], undrawn: list[str]) -> str:
    counts = [(unread, "read"), (unanswered, "answered"), (undrawn, "drawn")]
    head = " and ".join(f"{len(some)} of {num_images} images could not be {what}" for some, what in counts if some)
    failed = [*unread, *unanswered]
    shown = [*failed[: 4 - bool(undrawn)], *undrawn][:4]
    more = ["..."] if len(failed) + len(undrawn) > len(shown) else []
    return "\n".join([f"{head}:", *shown, *more])


def _draw(result: ImagePrediction, image: Path, target: Path) -> list[str]:
    """Draw what was found; return what kept it from being drawn: the other images are answered nevertheless."""
    from stvit_cli.data.images import explain_failure

    try:
        result.draw(target)
    except Exception as error:
        return [explain_failure(image, error)]
    return []
