"""What is measured on trained runs beyond their own metrics: paired tests, and images per second of their models, in turn."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stvit_cli import tasks
from stvit_cli.analysis.cost.throughput import Setting, prepare, time_in_turn
from stvit_cli.analysis.reproduce.experiments import Experiment
from stvit_cli.engine.kept_evaluation import read_kept
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.bootstrap import mcnemar
from stvit_cli.tasks.image_scores import ImageScores
from stvit_cli.utils.text import shell_command

logger = logging.getLogger(__name__)

ROUNDS = 7


def paired_tests(experiment: Experiment, paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Compare test predictions of runs image by image, setting against setting and seed by seed.

    Args:
        experiment: whose comparisons and seeds are taken.
        paths: run directories by key, ``LABEL, seed N``.

    Returns:
        A line for each pair whose predictions are kept: ``num_images``, how many images each gets right alone, and McNemar's
        ``p_value``.
    """
    if not experiment.paired:
        return {}
    scores = {key: found for key, path in paths.items() if (found := _test_scores(path)) is not None}
    lines = {}
    for label, other in experiment.comparisons:
        for seed in range(max(experiment.setting(label).seeds, experiment.setting(other).seeds)):
            keys = f"{label}, seed {seed}", f"{other}, seed {seed}"
            first, second = map(scores.get, keys)
            if first is None or second is None:
                continue
            if first.truth != second.truth:
                logger.warning("%s and %s, seed %d, were tested on different images: not compared", label, other, seed)
                continue
            alone = int((first.is_right & ~second.is_right).sum()), int((~first.is_right & second.is_right).sum())
            lines[f"{label} and {other}, seed {seed}"] = {
                "first": keys[0],
                "second": keys[1],
                "num_images": len(first.score),
                "only_first": alone[0],
                "only_second": alone[1],
                "p_value": mcnemar(*alone),
            }
    return lines


def _test_scores(path: Path) -> ImageScores | None:
    """Return how right a run is about each test image; None where its predictions are not kept."""
    run_dir = RunDir(path)
    spec = tasks.registry.get(recipe_io.load(run_dir.recipe).task)
    if spec.read_predictions is None or spec.image_scores is None:
        return None
    kept = read_kept(run_dir, spec.read_predictions, of="test")
    return None if kept is None else spec.image_scores(kept[1])


def speeds(experiment: Experiment, labels: Collection[str]) -> dict[str, dict[str, Any]]:
    """Measure images per second of inference, one model of each setting, in interleaved rounds.

    The models have random weights, which cost the same: a run's directory may be gone.

    Args:
        experiment: with ``speed``, the batch size.
        labels: settings that have a finished run; nothing is measured before all have one.

    Returns:
        A line for each setting: ``images_per_second`` (median), the slowest and fastest round, and what belongs to a figure.
    """
    if experiment.speed is None or not {setting.label for setting in experiment.settings} <= set(labels):
        return {}
    logger.info("Measuring images per second of %d models", len(experiment.settings))
    try:
        built = {setting.label: tasks.build(tasks.resolve(setting.recipe)[0]) for setting in experiment.settings}
    except UserError as error:
        logger.warning("Images per second are not measured: %s", error)
        return {}
    info = next(iter(built.values())).weights_info()
    setting = Setting((info.image_size, info.image_size), info.in_chans, experiment.speed, rounds=ROUNDS)
    timed = time_in_turn([prepare(label, task.model, setting) for label, task in built.items()], setting)
    command = shell_command("stvit", "reproduce", experiment.name)
    return {label: _speed_line(found, command) for label, found in timed.items()}


def _speed_line(found: Mapping[str, Any], command: str) -> dict[str, Any]:
    machine = found["machine"]
    return {
        "images_per_second": round(found["images_per_second"], 1),
        "slowest": round(found["spread"][0], 1),
        "fastest": round(found["spread"][1], 1),
        "batch_size": found["batch_size"],
        "precision": found["precision"],
        "served_by": found["served_by"],
        "machine": f"{machine['processor']} ({', '.join(machine['instruction_sets'])}), {machine['cpus']} cores",
        "threads": machine["threads"],
        "version": machine["versions"]["stvit"],
        "command": command,
    }
