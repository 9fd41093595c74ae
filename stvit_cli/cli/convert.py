"""``stvit convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli.cli import app
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, reporting
from stvit_cli.utils.files import require_new_file


def _at_most_max_side(side: int | None) -> int | None:
    from stvit_cli.recipe.field_types import MAX_SIDE

    if side is not None and side > MAX_SIDE:
        raise typer.BadParameter(f"{side} is not in the range 32<=x<={MAX_SIDE}.")
    return side


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A published checkpoint, such as stvit-s.pth.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The new file, ending in .safetensors.")],
    container: Annotated[
        str | None,
        typer.Option("--from", metavar="KEY", help="The weights to take of a checkpoint with several, such as model_ema."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=32, callback=_at_most_max_side, help="Side of the images: the shapes tell no size."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Turn the authors' published .pth files into safetensors, which say what they hold.

    \b
    stvit convert stvit-s.pth stvit-s.safetensors
    stvit convert stvit-b-384.pth stvit-b-384.safetensors --image-size 384
    stvit convert checkpoint.pth averaged.safetensors --from model_ema
    """
    require_new_file(target, ".safetensors")
    with reporting(json_file) as report:
        from stvit_cli.models.weights.convert import convert as run

        done = run(source, target, container, image_size)
        place = f" under '{done['container']}'" if done["container"] else ""
        echo(f"{source}: {done['model']}, {done['num_classes']} classes, {done['tensors']} tensors{place}.")
        echo(f"{len(done['renamed'])} renamed; left out {len(done['left_out'])} identity kernels, which are no weights.")
        if done["other_containers"]:
            echo(f"Also there, not taken: {', '.join(done['other_containers'])} (--from KEY takes them).", err=True)
        if done["image_size_from"] == "assumed":
            echo(
                f"Images of {done['image_size']} pixels are assumed: the file does not say. Otherwise: --image-size 384",
                err=True,
            )
        if done["model"] == "custom":
            echo(
                "Its widths and depths are those of no named model: build it in Python, then load_weights(model, FILE).", err=True
            )
        echo(f"Wrote {target}", err=True)
        report(done)
