"""Train the rows of Table II: an ablation whose settings are models, with a table of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stvit_cli import tasks
from stvit_cli.analysis.ablation.isotropic.report import Report, report_training
from stvit_cli.analysis.ablation.isotropic.table import NUMBERS, Setting, build_table, family_of
from stvit_cli.analysis.ablation.notes import what_scores_are
from stvit_cli.analysis.ablation.runs import Run
from stvit_cli.analysis.ablation.training import require_free_directory, save_plan, train_directory
from stvit_cli.errors import UserError
from stvit_cli.models.isotropic_rows import VARIANTS
from stvit_cli.models.registry import OF_SUPER_TOKENS
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.environment import is_main_process


@dataclass(frozen=True)
class IsotropicAblation:
    """Rows of Table II trained by one recipe.

    Attributes:
        path: directory of the runs and of the table.
        recipe: shared by all runs, apart from model, seed and name.
        numbers: of the rows.
        num_seeds: per row, counted up from the recipe's seed.
        overrides: keys that resumed runs get a new value of.
    """

    path: Path
    recipe: Recipe
    numbers: tuple[int, ...]
    num_seeds: int
    overrides: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The family of models, see `family_of`."""
        return family_of(self.recipe.model.name)

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a table with every row is available early."""
        first = self.recipe.train.seed
        return [self._run(number, seed) for seed in range(first, first + self.num_seeds) for number in self.numbers]

    def _run(self, number: int, seed: int) -> Run:
        model = self.family + NUMBERS[number]
        overrides = [f"model.name={model}", f"train.seed={seed}"]
        if VARIANTS[model].attention == "swin":
            overrides += [f"model.{key}=null" for key in sorted(OF_SUPER_TOKENS)]  # windows have no super tokens
        name = f"row{number}-seed{seed}"
        recipe = recipe_io.from_text(recipe_io.dump(self.recipe), [*overrides, f"name={name}"], source=self.recipe.name)
        return Run(f"row {number}, {model}", seed, recipe, self.path / name, self.overrides)

    def scores(self) -> dict[int, dict[int, float]]:
        """Return the scores of the finished runs in percent, by row number and seed."""
        result: dict[int, dict[int, float]] = {}
        for run in self.runs:
            if (score := run.score) is not None:
                result.setdefault(_number(run), {})[run.seed] = score
        return result

    def require_free(self) -> None:
        """Check that a new ablation can start.

        Raises:
            UserError: the directory is not empty, or the recipe's model is not a row of the table.
        """
        assert self.runs
        require_free_directory(self.path)

    def save(self) -> None:
        """Write plan.json and recipe.yaml, from which `reopen` resumes."""
        save_plan(self.path, {"rows": self.numbers, "seeds": self.num_seeds}, self.recipe)


def _number(run: Run) -> int:
    return next(number for number, name in NUMBERS.items() if run.recipe.model.name.endswith(f"-{name}"))


def reopen(path: Path, overrides: Sequence[str], numbers: tuple[int, ...] | None, num_seeds: int | None) -> IsotropicAblation:
    """Open the ablation in a directory to resume it, possibly with other rows or more seeds.

    Args:
        path: directory of the ablation.
        overrides: ``key=value``; they must not change the training.
        numbers: of the rows; those of the last time if None.
        num_seeds: per row; that of the last time if None.

    Raises:
        UserError: the directory holds no ablation, or the overrides change the recipe.
    """
    if not (path / "plan.json").is_file() or not (path / "recipe.yaml").is_file():
        raise UserError(f"{path} holds no ablation: expected a directory written by `stvit isotropic-ablation`.")
    plan = json.loads((path / "plan.json").read_text(encoding="utf-8"))
    if "rows" not in plan:
        raise UserError(f"{path} is an ablation of another kind: stvit ablate --resume {path}")
    stored = recipe_io.load(path / "recipe.yaml")
    recipe = recipe_io.load(path / "recipe.yaml", overrides)
    if changes := recipe_io.difference(stored, recipe):
        raise UserError(
            "\n".join(
                [f"{path} was started with another recipe, and all rows must use the same one. Changed:", *map(str, changes[:4])]
            )
        )
    return IsotropicAblation(path, recipe, numbers or tuple(plan["rows"]), num_seeds or plan["seeds"], tuple(overrides))


def run_ablation(ablation: IsotropicAblation, train: Callable[[Run], object], num_parallel: int = 1) -> Report:
    """Train the unfinished runs; the table is written again after each.

    Args:
        ablation: which runs.
        train: trains one run in this process, or resumes it.
        num_parallel: number of runs at a time; more than one: each in its own process.

    Raises:
        Interrupted: stopped by a signal; the state of every run is saved.
        UserError: the data cannot be used, or the directory is in use.
    """
    runs = ablation.runs
    # Building the task checks the data and counts its classes, before anything is written.
    num_classes = tasks.build(runs[0].recipe).weights_info().num_classes
    model = ablation.recipe.model
    size = ablation.recipe.data.image_size
    setting = Setting(ablation.family, size, num_classes, model.in_chans, model.grid_sizes, model.num_iters)

    def report() -> Report:
        failed = [(run.path.name, failure) for run in runs if (failure := run.failure) is not None]
        failures = [f"{name} {failure.kind}: {failure.message.splitlines()[0]}" for name, failure in failed]
        more = [*what_scores_are([found for run in runs if (found := run.result) is not None]), *failures]
        result = report_training(build_table(setting, ablation.scores()), ablation.recipe.name, more)
        if is_main_process():
            result.write(ablation.path)
        return result

    return train_directory(ablation.path, runs, train, num_parallel, ablation.save, report)
