"""``stvit push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import command, echo, reporting


@app.command()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run.", autocompletion=completion.run_dirs)],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hub, or local-dir:FOLDER.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="The licence of the weights, such as apache-2.0.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Upload a run's best weights, with a model card, to the Hugging Face Hub, or write the same files into a folder.

    \b
    stvit push runs/RUN someone/flowers --license apache-2.0
    stvit push runs/RUN local-dir:published
    stvit predict IMAGE --weights hf-hub:someone/flowers
    """
    with reporting(json_file) as report:
        result = api.push(run, repo, private=private, license=licence)
        echo(f"{', '.join(result.files)} -> {result.url or result.target}")
        if result.licence is None:
            echo("No licence is stated: add --license NAME, or edit README.md in the run directory, and push again.", err=True)
        echo("Next:", err=True)
        echo(command("stvit", "predict", "IMAGE", "--weights", result.target), err=True)
        report(result.to_dict())
