"""Experiments as data: which recipes, which settings, how many seeds, which score, and what is published. Imports no torch.

Each is a YAML file in the folder ``experiments`` beside this file:

``title``, ``question``: what the table is about.
``recipe``, ``overrides``: of all settings; a setting may name another recipe, and adds its own overrides.
``seeds``: number of seeds, counted from 0. With ``extra_seed: true`` settings whose difference does not have the same sign for
    all seeds get one more.
``score``: ``test`` (the run's one evaluation on the test set after training) or ``last`` (the evaluation after the last step).
``metrics``: names as in ``metrics.jsonl``, the main one first.
``minutes``: of a run, about, on one core of an AMD EPYC with AVX-512.
``against``: by label, the settings that it is compared with; where it is not given, every setting with the first.
``paired``: compare test predictions of such pairs image by image (McNemar), seed by seed.
``speed``: a batch size: measure images per second of the settings' models in inference, in turn.
``superpixels``: measure the runs' super tokens as superpixels, beside the grid and SLIC; see `analysis.superpixels`.
``settings``: by label. Each may hold ``recipe``, ``overrides``, ``seeds``,
    ``minutes`` and ``published``: its value in the published table.
``published``: ``what`` was measured, its ``source``, and ``values`` by name, of models that are not trained here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.yaml import flow, parse
from stvit_cli.utils.shipped import experiments_folder
from stvit_cli.utils.text import did_you_mean

SCORES = ("test", "last")
REQUIRED = {"title", "question", "score", "metrics", "settings"}
OF_A_SETTING = ("recipe", "overrides", "seeds", "minutes", "published")
MEASURED = ("extra_seed", "paired", "speed", "superpixels")


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        label: its name in the table.
        recipe_name: a shipped recipe.
        overrides: recipe keys and their values.
        seeds: number of seeds, counted from 0.
        minutes: of a run, about, on one core.
        published: its value in the published table, if there is one.
    """

    label: str
    recipe_name: str
    overrides: Mapping[str, Any]
    seeds: int
    minutes: float
    published: float | None = None

    @cached_property
    def words(self) -> list[str]:
        """The overrides as ``key=value``."""
        return [f"{key}={flow(value)}" for key, value in self.overrides.items()]

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with the overrides, of seed 0."""
        return recipe_io.load(self.recipe_name, self.words)

    def of_seed(self, seed: int) -> Recipe:
        """Return the recipe with another seed."""
        return self.recipe.model_copy(update={"train": self.recipe.train.model_copy(update={"seed": seed})})

    def command(self, seed: int) -> list[str]:
        """Return the words of the command that trains one run of this setting."""
        return ["stvit", "train", "--recipe", self.recipe_name, *self.words, f"train.seed={seed}"]


@dataclass(frozen=True)
class Experiment:
    """A table of results, as defined in a file; see the module for the meaning of each attribute."""

    name: str
    title: str
    question: str
    score: str
    metrics: tuple[str, ...]
    settings: tuple[Setting, ...]
    published: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    against: Mapping[str, Sequence[str]] | None = None
    extra_seed: bool = False
    paired: bool = False
    speed: int | None = None
    superpixels: bool = False

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """Pairs of labels: a setting, and one that it is compared with."""
        if self.against is not None:
            return [(label, other) for label, others in self.against.items() for other in others]
        return [(setting.label, self.settings[0].label) for setting in self.settings[1:]]

    @property
    def num_runs(self) -> int:
        """Number of runs, without extra seeds."""
        return sum(setting.seeds for setting in self.settings)

    @property
    def hours(self) -> float:
        """About how long all runs take on one core."""
        return sum(setting.seeds * setting.minutes for setting in self.settings) / 60

    def setting(self, label: str) -> Setting:
        """Return a setting by its label."""
        return next(setting for setting in self.settings if setting.label == label)


def names() -> list[str]:
    """Return the names of the experiments.

    Example:
        >>> "fashion-mnist" in names()
        True
    """
    return sorted(path.stem for path in experiments_folder().glob("*.yaml"))


def load(name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        UserError: there is none of this name.

    Example:
        >>> load("fashion-mnist").metric
        'top1'
    """
    if name not in names():
        raise UserError(f"There is no experiment named {name!r}.{did_you_mean(name, names())}\nThere are: {', '.join(names())}.")
    path = experiments_folder() / f"{name}.yaml"
    return read(name, path.read_text(encoding="utf-8"))


def read(name: str, text: str) -> Experiment:
    """Return the experiment that a file defines.

    Args:
        name: of the experiment.
        text: the YAML document.

    Raises:
        UserError: the text is no definition.
    """
    data, lines = parse(text, f"{name}.yaml")
    _require_keys(f"{name}.yaml", data, REQUIRED, {*OF_A_SETTING, "notes", "against", *MEASURED})
    if data["score"] not in SCORES:
        raise UserError(f"{name}.yaml, line {lines['score']}: score: found {data['score']}, expected one of {', '.join(SCORES)}.")
    against: Mapping[str, Sequence[str]] | None = data.get("against")
    for label in [label for pair in (against or {}).items() for label in (pair[0], *pair[1])]:
        if label not in data["settings"]:
            raise UserError(f"{name}.yaml: against: there is no setting {label}.{did_you_mean(label, data['settings'])}")
    return Experiment(
        name=name,
        title=data["title"],
        question=data["question"],
        score=data["score"],
        metrics=tuple(data["metrics"]),
        settings=tuple(_setting(name, label, own or {}, data) for label, own in data["settings"].items()),
        published=data.get("published") or {},
        notes=tuple(data.get("notes") or ()),
        against=against,
        **{key: data[key] for key in MEASURED if key in data},
    )


def _setting(name: str, label: str, own: Mapping[str, Any], shared: Mapping[str, Any]) -> Setting:
    """Return a setting: what it does not say itself, the experiment says for all."""
    _require_keys(f"{name}.yaml, settings.{label}", own, set(), set(OF_A_SETTING))
    merged = {key: own.get(key, shared.get(key)) for key in ("recipe", "seeds", "minutes")}
    for key, value in merged.items():
        if value is None:
            raise UserError(f"{name}.yaml, settings.{label}: it has no {key}, nor has the experiment.")
    overrides = {**(shared.get("overrides") or {}), **(own.get("overrides") or {})}
    return Setting(label, merged["recipe"], overrides, merged["seeds"], merged["minutes"], own.get("published"))


def _require_keys(where: str, data: Mapping[str, Any], required: set[str], optional: set[str]) -> None:
    for key in data:
        if key not in required | optional:
            raise UserError(f"{where}: unknown key {key}.{did_you_mean(key, required | optional)}")
    if missing := sorted(required - data.keys()):
        raise UserError(f"{where}: {missing[0]} is missing.")
