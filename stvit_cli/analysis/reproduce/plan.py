"""The runs that an experiment still needs, as runs of the ablations' runner."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stvit_cli.analysis.ablation.runs import Run
from stvit_cli.analysis.reproduce.experiments import Experiment
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.text import file_name

WORDS = re.compile(r"[\w.+=-]+")


def planned_runs(
    experiment: Experiment,
    folder: Path,
    known: Mapping[str, object],
    *,
    seeds: int | None = None,
    overrides: Sequence[str] = (),
    extra: Collection[str] = (),
) -> list[Run]:
    """Return the runs that are missing, seed by seed, so that a table with every setting is there early.

    Args:
        experiment: the definition.
        folder: where the run directories are.
        known: finished runs by key; they are not planned.
        seeds: number of seeds in place of the experiment's.
        overrides: keys that do not change what is learned, such as ``data.dir``.
        extra: labels of settings that get one seed more.
    """
    runs = []
    counts = {setting.label: (seeds or setting.seeds) + (setting.label in extra) for setting in experiment.settings}
    for seed in range(max(counts.values())):
        for setting in experiment.settings:
            if seed >= counts[setting.label] or f"{setting.label}, seed {seed}" in known:
                continue
            name = file_name(f"{'-'.join(WORDS.findall(setting.label))}-seed{seed}")
            recipe = recipe_io.from_text(recipe_io.dump(setting.of_seed(seed)), [f"name={name}", *overrides])
            runs.append(Run(setting.label, seed, recipe, folder / name, tuple(overrides)))
    return runs
