"""``stvit eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stvit_cli.cli import app
from stvit_cli.cli.options import Json, words
from stvit_cli.cli.output import echo, reporting
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.environment import is_main_process
from stvit_cli.utils.text import metric_text


@app.command("eval")
def eval_(
    words_: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN_DIR] [KEY=VALUE]...", help="The directory of a run; keys such as eval.batch_size=16."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="A weights file, in place of a run.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="The model that the file is expected to hold.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Another folder, laid out as its task's data are.")] = None,
    json_file: Json = None,
) -> None:
    """Evaluate a run on its validation data, or weights on a folder: of images by class, in COCO's or in ADE20K's layout.

    \b
    stvit eval runs/RUN
    stvit eval runs/RUN --data FOLDER --json -
    stvit eval --weights stvit-s.pth --model stvit-s --data IMAGENET
    """
    given = list(words_ or ())
    run_dir = Path(given.pop(0)) if given and "=" not in given[0] else None
    if (run_dir is None) == (weights is None):
        raise UserError("Evaluate what? Give either the directory of a run (stvit eval RUN_DIR) or a file (--weights FILE).")
    if weights is not None and data is None:
        raise UserError(
            "A weights file comes without data; give a folder of images by class, or in the layout of its task: --data DIR"
        )
    with reporting(json_file) as report:
        figures = _evaluate(run_dir, weights, model, data, given)
        if is_main_process():
            width = max(len(name) for name in figures) + 2
            for name, value in figures.items():
                shown = metric_text(name, value, figures["num_images"]) if isinstance(value, float) else value
                echo(f"{name:{width}}{shown}")
        report(figures)


def _evaluate(
    run_dir: Path | None, weights: Path | None, model: str | None, data: str | None, given: list[str]
) -> dict[str, Any]:
    from stvit_cli.analysis.evaluate import FOLDERS, evaluate, recipe_for, same_folder
    from stvit_cli.engine.run_dir import RunDir
    from stvit_cli.tasks.loading import open_trained

    if run_dir is None:
        assert weights is not None
        trained = open_trained(weights, model)
        return evaluate(trained, recipe_for(trained, words(given, data=data)), whole=True, say=_say)
    place = RunDir(run_dir)
    place.require_run()
    own = recipe_io.load(place.recipe)
    other = [] if data is None else [*words(None, data=data), f"data.kind={FOLDERS[own.task]}"]
    recipe = recipe_io.load(place.recipe, [*other, *given])
    is_other = recipe.data.dir is not None and not same_folder(own.data.dir, recipe.data.dir)
    return evaluate(open_trained(run_dir, model), recipe, whole=is_other, say=_say)


def _say(line: str) -> None:
    """Print what looks wrong with the data; of several processes only the first does."""
    if is_main_process():
        typer.echo(line, err=True)
