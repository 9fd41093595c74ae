"""``stvit visualize-associations``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, print_table, reporting
from stvit_cli.errors import UserError
from stvit_cli.utils.files import require_writable_file, require_writable_folder

if TYPE_CHECKING:
    from stvit_cli.analysis.associations.superpixels import Segmentation


@app.command()
def visualize_associations(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images of any size and kind.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A weights file, a run's directory or a name of `stvit weights list`; else random weights.",
            autocompletion=completion.weights,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The model of a .pth file, or of random weights (stvit-s).", autocompletion=completion.models
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="A folder for each image is made in it.")] = Path("associations"),
    layers: Annotated[
        list[str] | None, typer.Option(metavar="NAME,...", help="Only these: stage1.block2, or stage1 for all its blocks.")
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="Show what this pixel of the image attends to; may be repeated.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="N", min=32, help="Short side of what the model sees; else that of its training.")
    ] = None,
    keep_size: Annotated[bool, typer.Option("--keep-size", help="Show the image to the model as large as it is.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Also a page on which a click shows a place's attention.")] = False,
    arrays: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Also save the arrays behind the images.")] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="MAP.png", help="A label map of the image, to compare with the grid and SLIC.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Show super tokens and attention of an image.

    \b
    stvit visualize-associations img.jpg --weights runs/RUN --point 320,200
    stvit visualize-associations img.jpg --weights stvit-s.pth --model stvit-s --html
    stvit visualize-associations img.jpg --layers stage1,stage2.block5 --labels map.png --arrays out.npz
    """
    points = tuple(_parse_point(text) for text in point or ())
    names = tuple(name.strip() for text in layers or () for name in text.split(",") if name.strip())
    if len(images) > 1 and (arrays is not None or labels is not None):
        raise UserError(f"--{'arrays' if arrays is not None else 'labels'} is for one image, {len(images)} were given.")
    if keep_size and image_size is not None:
        raise UserError("--image-size and --keep-size exclude each other.")
    require_writable_folder(output)
    if arrays is not None:
        require_writable_file(arrays)
    with reporting(json_file) as report:
        from stvit_cli.analysis.associations.report import VisualizationOptions, open_model, visualize
        from stvit_cli.data.images import explain_failure

        visualized = open_model(weights, model)
        if not visualized.trained:
            echo(
                f"{visualized.info.model} is UNTRAINED: its weights are random. For a trained model, give --weights FILE.",
                err=True,
            )
        options = VisualizationOptions(names, points, image_size, keep_size, html, arrays, labels)
        written, failed = [], []
        for image, folder in zip(images, _folders(images, output), strict=True):
            try:
                for item in visualize(visualized, image, folder, options):
                    written.append(item)
                    echo(f"{item.file}")
                    if item.notice:
                        echo(item.notice, err=True)
                    _print_segmentations(item.segmentations)
            except Exception as error:  # one bad image does not end the others
                failed.append(explain_failure(image, error))
        report([item.to_dict() for item in written])
    if failed:
        head = [f"{len(failed)} of {len(images)} images could not be shown:"] if len(images) > 1 else []
        shown = failed[:4] + (["..."] if len(failed) > 4 else [])
        raise UserError("\n".join([*head, *shown]))


def _parse_point(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--point {text}: expected two whole numbers, X,Y, counted in pixels from the upper left corner.")
    return int(parts[0]), int(parts[1])


def _folders(images: list[Path], output: Path) -> list[Path]:
    """Return a folder of its own for each image, by its name."""
    names: list[str] = []
    for image in images:
        number, name = 1, image.stem
        while name in names:
            number, name = number + 1, f"{image.stem}-{number + 1}"
        names.append(name)
    return [output / name for name in names]


def _print_segmentations(segmentations: tuple[Segmentation, ...]) -> None:
    if segmentations:
        rows = [
            [
                item.name,
                str(item.num_segments),
                f"{item.boundary_share:.3f}",
                f"{item.boundary_recall:.3f}",
                f"{item.undersegmentation_error:.3f}",
                f"{item.accuracy:.3f}",
            ]
            for item in segmentations
        ]
        columns = ["segmentation", "segments", "boundary pixels", "boundary recall", "undersegmentation error"]
        print_table([*columns, "achievable accuracy"], rows)
