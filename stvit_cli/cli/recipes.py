"""``stvit recipes list/show/copy/check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli.cli import app, completion
from stvit_cli.cli.help import App
from stvit_cli.cli.options import Json, Overrides
from stvit_cli.cli.output import command, echo, print_table, reporting
from stvit_cli.errors import UserError
from stvit_cli.utils.console import open_console
from stvit_cli.utils.files import replace_file
from stvit_cli.utils.text import did_you_mean

recipes = App()
app.add_typer(recipes, name="recipes")

NARROW = 120
"""A terminal's width below which there is no column for the model: each description would take three lines."""

NameOrPath = Annotated[
    str,
    typer.Argument(help="A shipped recipe's name, or the path of a file.", metavar="RECIPE", autocompletion=completion.recipes),
]


@recipes.callback(invoke_without_command=True)
def about(context: typer.Context) -> None:
    """List, show, copy and check recipes.

    \b
    stvit recipes list
    stvit recipes copy quickstart mine.yaml
    stvit recipes check mine.yaml
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@recipes.command("list")
def list_(json_file: Json = None) -> None:
    """List the shipped recipes.

    \b
    stvit recipes list
    stvit recipes list --json -
    """
    from stvit_cli.recipe import io as recipe_io

    with reporting(json_file) as report:
        loaded = [recipe_io.load(path.stem) for path in recipe_io.list_recipes()]
        console = open_console()
        if console.width < NARROW:  # `stvit recipes show` has the model
            print_table(["recipe", "task", "what"], [[r.name, r.task, r.description] for r in loaded])
        else:
            print_table(["recipe", "task", "model", "what"], [[r.name, r.task, r.model.name, r.description] for r in loaded])
        report([{"name": r.name, "task": r.task, "model": r.model.name, "description": r.description} for r in loaded])


@recipes.command()
def show(
    name: NameOrPath,
    overrides: Overrides = None,
    full: Annotated[bool, typer.Option("--full", help="Every key, also those left at their default, explained.")] = False,
) -> None:
    """Print a recipe as its file has it; with key=value or --full, as a run would see it.

    Where it is based on others, their values are filled in, each with the file and the line that it comes from.

    \b
    stvit recipes show deit300
    stvit recipes show deit300 --full
    stvit recipes show deit300 model.name=stvit-b optim.lr=5e-4
    """
    from stvit_cli.recipe import io as recipe_io
    from stvit_cli.recipe.inheritance import as_single_file

    recipe, layers, _ = recipe_io.resolve(name, overrides or ())
    if full or overrides:
        _print_text(recipe_io.dump(recipe, only_changes=not full, explain=full))
    elif len(layers) > 1:
        _print_text(as_single_file(layers, show_origins=True))
    else:
        _print_text(layers[0].text)


@recipes.command()
def copy(
    name: NameOrPath,
    destination: Annotated[Path, typer.Argument(help="The new file, or a folder for it.", metavar="FILE")],
) -> None:
    """Copy a recipe, with its comments, to a file of your own. Nothing is overwritten.

    A recipe that is based on others is written out, so that the copy stands alone.

    \b
    stvit recipes copy quickstart mine.yaml
    """
    from stvit_cli.recipe import io as recipe_io
    from stvit_cli.recipe.files import read
    from stvit_cli.recipe.inheritance import as_single_file, read_layers

    source = recipe_io.find(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.suffix not in (".yaml", ".yml"):
        raise UserError(f"{target}: a recipe's file ends in .yaml; did you mean {target}.yaml?")
    if target.exists():
        raise UserError(f"{target} exists; choose another name, or remove it first.")
    layers = read_layers(read(source), name, source)
    try:
        replace_file(target, as_single_file(layers).encode() if len(layers) > 1 else source.read_bytes())
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}.") from None
    echo(f"Wrote {target}. Edit it, then:", err=True)
    echo(command("stvit", "recipes", "check", target), command("stvit", "train", "--recipe", target), err=True)


@recipes.command()
def check(name: NameOrPath, overrides: Overrides = None) -> None:
    """Say whether a recipe is valid, and what it changes from the defaults.

    \b
    stvit recipes check mine.yaml
    stvit recipes check mine.yaml optim.lr=5e-4
    """
    from stvit_cli.recipe import io as recipe_io

    recipe, layers, renamed = recipe_io.resolve(name, overrides or ())
    from stvit_cli.models import list_models
    from stvit_cli.recipe import OptimSection

    if recipe.model.name.startswith("timm/"):
        from stvit_cli.models.timm_models import built_in_name, checked_kwargs, require_buildable, require_known

        if built_in_name(recipe.model.name) == recipe.model.name:
            own = require_known(recipe.model.name)
            arguments = checked_kwargs(own, recipe.model.kwargs)
            require_buildable(own, arguments, arguments)
    elif recipe.model.name not in (*list_models(), "auto"):
        guess = did_you_mean(recipe.model.name, list_models())
        raise UserError(f"{name}: model.name: there is no model {recipe.model.name!r}.{guess} Known: {', '.join(list_models())}")
    if recipe.optim.name != OptimSection().name:  # timm knows the others, and its import takes a second
        from stvit_cli.engine.optim import check_optimizer

        check_optimizer(recipe.optim)
    based = f", based on {' -> '.join(layer.source for layer in layers[1:])}" if len(layers) > 1 else ""
    echo(f"{name} is valid{based}. What it sets:", "")
    echo(*(f"# {sentence}" for sentence in renamed))
    _print_text(recipe_io.dump(recipe, only_changes=True))


def _print_text(text: str) -> None:
    echo(*text.removesuffix("\n").split("\n"))
