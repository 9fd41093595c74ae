"""The runs of a comparison: what is read of each, and whether two were evaluated on the same images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stvit_cli import tasks
from stvit_cli.analysis.run_predictions import RunPredictions, predictions_of_run
from stvit_cli.engine.kept_evaluation import read_kept
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir, Subset
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.image_scores import ImageScores
from stvit_cli.tasks.predictions import Statistics


@dataclass(frozen=True)
class ComparedRun:
    """A run of a comparison.

    Attributes:
        name: the shortest end of its path that no other run has.
        path: its directory.
        recipe: its settings.
        train: rows of the logged steps.
        evals: rows of the evaluations.
        found: what its best weights predict; None where they cannot be evaluated.
        scores: how right these are about each image.
        problem: why it is not evaluated.
        images: the images that ``found`` is about: those of the validation, or of the test set.
    """

    name: str
    path: Path
    recipe: Recipe
    train: Sequence[Mapping[str, Any]]
    evals: Sequence[Mapping[str, Any]]
    found: RunPredictions | None
    scores: ImageScores | None
    problem: str = ""
    images: Subset = "val"

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the best weights without those of each class; of the last evaluation where they are not evaluated."""
        if self.found is not None:
            values: Mapping[str, Any] = self.found.metrics
        else:
            values = self.evals[-1] if self.evals else {}
        left_out = {"kind", "step", "epoch", "seconds"}
        return {
            name: float(value)
            for name, value in values.items()
            if name not in left_out and "/" not in name and isinstance(value, int | float) and not name.startswith("ema_")
        }

    @cached_property
    def statistics(self) -> Statistics:
        """The metrics of a run that is evaluated, as a function of the images: those of a detector take seconds to prepare."""
        assert self.found is not None
        return self.found.predictions.statistics()


def open_runs(paths: Sequence[Path], say: Callable[[str], None]) -> list[ComparedRun]:
    """Read the runs, each on the same images: those of the test set where all have kept predictions of the same one.

    Otherwise on the validation images; runs without kept predictions of these are evaluated.

    Args:
        paths: run directories.
        say: called with each warning.

    Raises:
        UserError: a path is no run.
    """
    for path in paths:
        RunDir(path).require_run()
    tested = {path.resolve(): tested_predictions(path) for path in paths}
    is_test = _are_same(list(tested.values()))
    opened: dict[Path, ComparedRun] = {}
    runs = []
    for name, path in zip(short_names(paths), paths, strict=True):
        resolved = path.resolve()
        if resolved not in opened:
            opened[resolved] = _open(name, path, say, tested[resolved] if is_test else None)
        runs.append(replace(opened[resolved], name=name))
    return runs


def tested_predictions(path: Path) -> RunPredictions | None:
    """Return what a run has kept of its best weights' evaluation on the test set; None where there is nothing."""
    run_dir = RunDir(path)
    recipe = recipe_io.load(run_dir.recipe)
    read = tasks.registry.get(recipe.task).read_predictions
    kept = None if read is None else read_kept(run_dir, read, of="test")
    return None if kept is None else RunPredictions(run_dir, recipe, kept[0].metrics, kept[1], was_kept=True)


def _are_same(tested: Sequence[RunPredictions | None]) -> bool:
    """Whether all are predictions of the same images, for the same task and classes."""
    about = {
        (found.recipe.task, tuple(found.predictions.images), tuple(found.predictions.class_names)) if found is not None else None
        for found in tested
    }
    return len(about) == 1 and None not in about


def _open(name: str, path: Path, say: Callable[[str], None], tested: RunPredictions | None) -> ComparedRun:
    run_dir = RunDir(path)
    recipe, log = recipe_io.load(run_dir.recipe), MetricsLog(run_dir.metrics)
    found, scores, problem = None, None, ""
    try:
        found = tested if tested is not None else predictions_of_run(path, say)
        score = tasks.registry.get(recipe.task).image_scores
        scores = None if score is None else score(found.predictions)
    except UserError as error:
        problem = str(error)
    images: Subset = "val" if tested is None else "test"
    return ComparedRun(name, path, recipe, log.rows("train"), log.rows("eval"), found, scores, problem, images)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: the last part of its path, with as many more as tell it from the others.

    >>> short_names([Path("a/run"), Path("b/run"), Path("c"), Path("c")])
    ['a/run', 'b/run', 'c', 'c (2)']
    """
    parts = [path.resolve().parts for path in paths]
    length = 1
    while length < max(map(len, parts)):
        # Of the same run twice no longer name helps.
        named = {own: "/".join(own[-length:]) for own in parts}
        if len(set(named.values())) == len(named):
            break
        length += 1
    unique = Counter("/".join(own[-1:]) for own in set(parts))
    names = ["/".join(own[-length:]) if unique[own[-1]] > 1 else own[-1] for own in parts]
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def why_unpaired(a: ComparedRun, b: ComparedRun) -> str:
    """Return why two runs cannot be compared image by image; empty where they can."""
    if a.recipe.task != b.recipe.task:
        return f"{a.name} is a run of {a.recipe.task}, {b.name} of {b.recipe.task}: their metrics measure different things."
    if a.found is None or b.found is None or a.scores is None or b.scores is None:
        which = a if a.found is None or a.scores is None else b
        return f"{which.name} is not evaluated, so its metrics are those of its last evaluation in training."
    ours, theirs = a.found.predictions, b.found.predictions
    if list(ours.class_names) != list(theirs.class_names):
        count = f"{len(ours.class_names)} and {len(theirs.class_names)}"
        detail = count if len(ours.class_names) != len(theirs.class_names) else "other names, or another order"
        return f"{a.name} and {b.name} have different classes ({detail}): their metrics cannot be compared as such."
    if a.scores.truth != b.scores.truth:
        counts = f"{len(ours.images)} and {len(theirs.images)} images"
        detail = counts if len(ours.images) != len(theirs.images) else "other images or labels"
        return (
            f"{a.name} and {b.name} were evaluated on different data ({detail}): "
            "a difference of their metrics is one of the data too."
        )
    return ""


def differing(a: ComparedRun, b: ComparedRun) -> list[int]:
    """Return the indices of the images on which two runs differ: the largest differences, then the most certain, first."""
    assert a.scores is not None
    assert b.scores is not None
    difference = np.abs(b.scores.score - a.scores.score)
    certainty = a.scores.certainty + b.scores.certainty
    order = np.lexsort((-certainty, -difference))
    return [index for index in order.tolist() if difference[index] > 0]
