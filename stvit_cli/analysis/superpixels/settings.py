"""The weights that are measured: runs of one recipe are seeds of one setting, beside the same model with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from stvit_cli.data import derive_seed
from stvit_cli.data.loader import seeded
from stvit_cli.errors import UserError
from stvit_cli.models.weights.info import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks import registry
from stvit_cli.tasks.loading import open_trained


@dataclass(frozen=True)
class Setting:
    """Trained weights of one setting.

    Attributes:
        name: for the table.
        weights: the files.
        info: how the models see an image.
        recipe_hash: of the first weights; empty where the file does not say it.
        seeds: ``train.seed`` of each run; None of a file without a run.
        models: the trained networks, in eval mode, one of each file.
    """

    name: str
    weights: tuple[Path, ...]
    info: WeightsInfo
    recipe_hash: str
    seeds: tuple[int | None, ...]
    models: tuple[nn.Module, ...]

    def untrained(self, number: int) -> tuple[nn.Module, ...]:
        """Return the same network with ``number`` different random initializations, the same in every call."""
        models = []
        for seed in range(number):
            with seeded(derive_seed(seed, "model")):
                models.append(registry.get(self.info.task).create_model(self.info).eval())
        return tuple(models)


def open_settings(weights: Sequence[str | Path]) -> list[Setting]:
    """Open weights, and put together what are seeds of one setting.

    Args:
        weights: run directories or weights files; ``NAME=RUN`` gives a setting's name. Runs of the same name, or without names
            runs whose recipes differ in ``train.seed`` alone, belong together.

    Raises:
        UserError: none given, weights that cannot be opened, or different models under one name.
    """
    if not weights:
        raise UserError("No weights given: expected run directories or weights files.")
    groups: dict[tuple[str, str], list[tuple[Path, Recipe | None]]] = {}
    for text in map(str, weights):
        name, equals, rest = text.partition("=")
        named = bool(equals and name and rest and not Path(text).exists())
        path = Path(rest if named else text)
        recipe = _recipe_of(path)
        key = ("name", name) if named else ("path", text) if recipe is None else ("recipe", _hash_without_seed(recipe))
        groups.setdefault(key, []).append((path, recipe))
    names = _names(list(groups), [members[0] for members in groups.values()])
    return [_open(name, members) for name, members in zip(names, groups.values(), strict=True)]


def _open(name: str, members: Sequence[tuple[Path, Recipe | None]]) -> Setting:
    trained = [open_trained(path) for path, _ in members]
    first = trained[0].info
    for other in trained[1:]:
        if _seen_as(other.info) != _seen_as(first):
            raise UserError(f"{name}: {other.path} is not of the same model, task and input as {trained[0].path}.")
    seeds = tuple(None if recipe is None else recipe.train.seed for _, recipe in members)
    return Setting(
        name, tuple(path for path, _ in members), first, first.recipe_hash, seeds, tuple(item.model for item in trained)
    )


def _seen_as(info: WeightsInfo) -> WeightsInfo:
    """Return what decides how a model sees an image."""
    return replace(info, class_names=(), num_classes=0, recipe_hash="", licence="")


def _recipe_of(path: Path) -> Recipe | None:
    """Return the recipe of the run that a path is, or lies in."""
    file = (path if path.is_dir() else path.parent) / "recipe.yaml"
    return recipe_io.load(file) if path.exists() and file.is_file() else None


def _hash_without_seed(recipe: Recipe) -> str:
    return recipe_io.recipe_hash(recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 0})}))


def _names(keys: Sequence[tuple[str, str]], firsts: Sequence[tuple[Path, Recipe | None]]) -> list[str]:
    """Return a name for each setting: the given one, else that of the recipe, or of the run where two recipes have one name."""
    recipes = [recipe.name if recipe is not None else "" for _, recipe in firsts]
    return [
        key[1] if key[0] == "name" else recipe if recipe and recipes.count(recipe) == 1 else path.name or str(path)
        for key, recipe, (path, _) in zip(keys, recipes, firsts, strict=True)
    ]
