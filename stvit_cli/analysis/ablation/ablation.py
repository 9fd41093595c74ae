"""An ablation in its directory: a recipe, settings, seeds; saved, resumed with more of them, trained, and tabulated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stvit_cli import tasks
from stvit_cli.analysis.ablation.runs import Run
from stvit_cli.analysis.ablation.settings import Setting, check_values, make_settings, same
from stvit_cli.analysis.ablation.table import AblationTable, make_table
from stvit_cli.analysis.ablation.training import require_free_directory, save_plan, train_directory
from stvit_cli.errors import UserError
from stvit_cli.models.registry import own_options
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils import strict_json
from stvit_cli.utils.environment import is_main_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ablation:
    """A recipe trained in several settings with several seeds.

    Attributes:
        path: directory of the runs and of the table.
        recipe: shared by all runs, apart from the settings, the seed and the name.
        settings: the first is the one that the others are compared with.
        num_seeds: per setting, counted up from the recipe's seed.
        varied: the values of each key.
        product: the settings are all combinations of the values.
        overrides: keys that resumed runs get a new value of.
    """

    path: Path
    recipe: Recipe
    settings: tuple[Setting, ...]
    num_seeds: int = 1
    varied: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    product: bool = False
    overrides: tuple[str, ...] = ()

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a table with every setting is available early. Raises UserError for a bad setting."""
        first = self.recipe.train.seed
        return [self._run(setting, seed) for seed in range(first, first + self.num_seeds) for setting in self.settings]

    def _run(self, setting: Setting, seed: int) -> Run:
        name = f"{setting.folder}-seed{seed}"
        words = [*setting.overrides(), f"train.seed={seed}", f"name={name}"]
        recipe = recipe_io.from_text(recipe_io.dump(self.recipe), words, source=self.recipe.name)
        return Run(setting.name, seed, recipe, self.path / name, self.overrides)

    def distinct(self) -> Ablation:
        """Return the ablation without settings that are the same training as an earlier one, and say which.

        Raises:
            UserError: a setting is no valid recipe.
        """
        first = self.recipe.train.seed
        kept: list[tuple[Setting, dict[str, Any]]] = []
        for setting in self.settings:
            learned = _learned(self._run(setting, first).recipe)
            same_as = next((other.name for other, others in kept if others == learned), None)
            if same_as is None:
                kept.append((setting, learned))
            else:
                logger.info("%s is the same training as %s, so it is trained once.", setting.name, same_as)
        return replace(self, settings=tuple(setting for setting, _ in kept))

    def require_free(self) -> None:
        """Check that a new ablation can start in the directory. Raises UserError where it holds something."""
        require_free_directory(self.path)

    def save(self) -> None:
        """Write plan.json and recipe.yaml, from which `reopen` resumes."""
        settings = [{"name": each.name, "values": dict(each.values), "folder": each.folder} for each in self.settings]
        varied = {key: list(values) for key, values in self.varied.items()}
        plan = {"settings": settings, "seeds": self.num_seeds, "varied": varied, "product": self.product}
        save_plan(self.path, plan, self.recipe, indent=2)

    def table(self) -> AblationTable:
        """Return the table of the runs that have finished so far."""
        runs: dict[str, list[Run]] = {}
        for run in self.runs:
            runs.setdefault(run.setting, []).append(run)
        return make_table(self.path, self.recipe, self.settings, runs)

    def write_table(self) -> AblationTable:
        """Write the table's files into the directory, and return it."""
        table = self.table()
        if is_main_process():
            table.write()
        return table


def new_ablation(
    path: Path, recipe: Recipe, varied: Mapping[str, Sequence[Any]], num_seeds: int = 1, *, product: bool = False
) -> Ablation:
    """Return a new ablation; nothing is written.

    Args:
        path: its directory.
        recipe: shared by all runs.
        varied: the values of each key.
        num_seeds: per setting.
        product: all combinations of the values, not one key at a time.

    Raises:
        UserError: there is nothing to vary, or a setting is invalid.
    """
    if not varied:
        raise UserError("Vary what? Give a key with several values: key=a,b,c, such as optim.lr=1e-3,2e-3.")
    for key, values in varied.items():
        check_values(key, values)
    ablation = Ablation(path, recipe, tuple(make_settings(varied, product)), num_seeds, dict(varied), product).distinct()
    if len(ablation.settings) < 2:
        raise UserError(f"{', '.join(varied)}: every value is what the recipe has already; give another one.")
    return ablation


def reopen(
    path: Path, varied: Mapping[str, Sequence[Any]] | None = None, overrides: Sequence[str] = (), num_seeds: int | None = None
) -> Ablation:
    """Open the ablation in a directory to resume it, possibly with more settings or seeds.

    Args:
        path: its directory.
        varied: more values of its keys, or other keys.
        overrides: keys that do not change what is learned, such as ``data.dir``.
        num_seeds: per setting; that of the last time if None.

    Raises:
        UserError: the directory holds no ablation, or the overrides change what is learned.
    """
    plan = strict_json.read_object(path / "plan.json") if (path / "recipe.yaml").is_file() else {}
    if "rows" in plan:
        raise UserError(f"{path} is an ablation of Table II: stvit isotropic-ablation --resume {path}")
    if "settings" not in plan:
        raise UserError(f"{path} holds no ablation: expected a directory written by `stvit ablate`.")
    stored, recipe = recipe_io.load(path / "recipe.yaml"), recipe_io.load(path / "recipe.yaml", overrides)
    if changes := recipe_io.difference(stored, recipe):
        shown = [f"  {change}" for change in changes[:3]]
        raise UserError("\n".join([f"{path} was started with another recipe, and all runs must share it. Changed:", *shown]))
    settings = tuple(Setting(each["name"], each["values"], each["folder"]) for each in plan["settings"])
    ablation = Ablation(path, recipe, settings, num_seeds or plan["seeds"], plan["varied"], plan["product"], tuple(overrides))
    return ablation if not varied else _extended(ablation, varied)


def _extended(ablation: Ablation, varied: Mapping[str, Sequence[Any]]) -> Ablation:
    """Return the ablation with more settings; those that it has keep their place and their runs."""
    new_keys = [key for key in varied if key not in ablation.varied]
    if ablation.product and new_keys:
        known = ", ".join(ablation.varied)
        raise UserError(f"{new_keys[0]}: this ablation is the product of {known}; start another one to vary other keys.")
    merged = {key: list(values) for key, values in ablation.varied.items()}
    for key, values in varied.items():
        merged.setdefault(key, []).extend(v for v in values if not any(same(v, other) for other in ablation.varied.get(key, ())))
        check_values(key, merged[key])
    settings = make_settings(merged, ablation.product, ablation.settings, with_base=len(merged) > 1)
    known_settings = ablation.settings
    ablation = replace(ablation, settings=tuple(settings), varied=merged).distinct()
    for setting in ablation.settings[len(known_settings) :]:
        logger.info("Added: %s", setting.name)
    return ablation


def _learned(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a run but its name, with those of the model filled in where they are its own."""
    own = {f"model.{key}": value for key, value in own_options(recipe.model.name).items()}
    settings = {key: own.get(key) if value is None else value for key, value in recipe_io.flatten(recipe).items()}
    return {key: value for key, value in settings.items() if key not in ("name", "description")}


def run_ablation(ablation: Ablation, train: Callable[[Run], object], num_parallel: int = 1) -> AblationTable:
    """Train the unfinished runs; the table is written again after each.

    Args:
        ablation: what is trained.
        train: trains one run in this process, or resumes it.
        num_parallel: number of runs at a time; more than one: each in its own process.

    Raises:
        Interrupted: stopped by a signal; the state of every run is saved.
        UserError: the data cannot be used, or the directory is in use.
    """
    runs = ablation.runs
    tasks.build(tasks.resolve(runs[0].recipe)[0])  # what is wrong with the data is found before anything is written
    return train_directory(ablation.path, runs, train, num_parallel, ablation.save, ablation.write_table)
