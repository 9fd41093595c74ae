"""``stvit predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli.cli import app
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import reporting
from stvit_cli.errors import UserError


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Pictures, and folders of pictures.")],
    weights: Annotated[Path, typer.Option(metavar="FILE", help="A weights file, or the directory of a run.")],
    top: Annotated[int, typer.Option(metavar="K", min=1, help="How many classes to name.")] = 1,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write the pictures here, with what was found.")] = None,
    json_file: Json = None,
) -> None:
    """Name what pictures show.

    \b
    stvit predict some.png --weights runs/RUN
    stvit predict FOLDER --weights runs/RUN --top 5 --json result.json
    stvit predict some.jpg --weights stvit-s.pth --output drawn
    """
    from stvit_cli.analysis import predict as prediction
    from stvit_cli.analysis.trained import open_trained
    from stvit_cli.engine.distributed import pick_device

    with reporting(json_file) as report:
        pictures = prediction.list_pictures(paths)
        trained = open_trained(weights)
        results = []
        for number, result in enumerate(prediction.predict(trained, pictures, top=top, device=pick_device("auto"))):
            results.append(result)
            if result.error is None:
                typer.echo(f"{result.path}  " + ", ".join(f"{g.name} {g.probability:.1%}" for g in result.guesses))
                if output is not None:
                    prediction.draw(result, output / f"{number:05d}-{result.path.stem}.png")
        report([result.to_json() for result in results])
    errors = [result.error for result in results if result.error is not None]
    if errors:
        shown = errors[:4] + (["..."] if len(errors) > 4 else [])
        raise UserError("\n".join([f"{len(errors)} of {len(results)} pictures could not be read:", *shown]))
