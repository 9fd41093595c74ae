"""What ``train`` and ``finetune`` have in common: everything that can be wrong is found before anything is written."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import typer

from stvit_cli import recipe_io
from stvit_cli.cli.options import command
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe


def new_run(recipe: Recipe, output: Path | None, weights: Path | None, dry_run: bool) -> tuple[Path, dict[str, Any]]:
    """Train into a new run directory, ``output`` or ``runs/<recipe>-<time>``; return it and the figures."""
    if output is None and not dry_run and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("With several processes the run directory must be named, so that all use the same one: --output DIR")
    run_dir = output or Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and (run_dir / "recipe.yaml").exists()
    if not again and not dry_run and os.environ.get("RANK", "0") == "0":
        require_empty(run_dir)
    return run_dir, _run(recipe, run_dir, weights, resume=again, dry_run=dry_run)


def resumed_run(run_dir: Path, recipe_name: str | None, words: list[str], dry_run: bool) -> tuple[Path, dict[str, Any]]:
    """Go on with the run in ``run_dir``, whose recipe must be the same in all that decides what is learned."""
    stored = recipe_of(run_dir)
    recipe = recipe_io.load(recipe_name or run_dir / "recipe.yaml", words)
    changes = recipe_io.difference(stored, recipe)
    if changes:
        shown = "".join(f"\n  {change}" for change in changes[:4]) + ("\n  ..." if len(changes) > 4 else "")
        raise UserError(f"{run_dir} was started with another recipe; a changed recipe is a new run.{shown}")
    return run_dir, _run(recipe, run_dir, None, resume=True, dry_run=dry_run)


def recipe_of(run_dir: Path) -> Recipe:
    """Return the recipe that a run directory was made with. Raises UserError where that is no run directory."""
    if not (run_dir / "recipe.yaml").is_file():
        found = "there is no such folder" if not run_dir.is_dir() else "it holds no recipe.yaml"
        raise UserError(f"{run_dir} is no run directory: {found}. Expected what `stvit train` wrote, such as runs/quickstart-...")
    return recipe_io.load(run_dir / "recipe.yaml")


def require_empty(run_dir: Path) -> None:
    """Raise UserError where ``run_dir`` holds something, or could not be made and written to."""
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; expected a folder for the run, new or empty.")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        go_on = f" To go on with the run in it: --resume {run_dir}" if (run_dir / "recipe.yaml").exists() else ""
        raise UserError(f"{run_dir} is not empty; expected a new or empty folder for the run.{go_on}")
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    try:
        # Asking for the permission is not enough: a read-only disk, or root, answers otherwise than it acts.
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written: {error.strerror} ({existing}).") from None


def say_what_next(run_dir: Path) -> None:
    """Print what to type after a run; of several processes only the first does."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo("Next:")
        typer.echo(command("stvit", "eval", run_dir))
        typer.echo(command("stvit", "predict", "PICTURE", "--weights", run_dir))


def _run(recipe: Recipe, run_dir: Path, weights: Path | None, *, resume: bool, dry_run: bool) -> dict[str, Any]:
    from stvit_cli import engine, tasks
    from stvit_cli.analysis.trained import weights_file

    task = tasks.build(recipe, weights=None if weights is None else weights_file(weights))
    if dry_run:
        return engine.dry_run(task, recipe)
    return engine.fit(task, recipe, run_dir, resume=resume)
