"""The results of an experiment: one line for each run and each setting, from finished runs, as JSON.

``docs/results/NAME.json`` holds what ``NAME.md`` is rendered from. Its parts ``settings`` and ``runs`` map keys to figures, one
line of the file each, so that ``NAME.json#settings/LABEL/mean`` names a figure. Runs that are already in the file stay, as long
as the definition of their setting does and no run of the same setting and seed is found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from stvit_cli.analysis.ablation.results import RunResult
from stvit_cli.analysis.ablation.statistics import estimate
from stvit_cli.analysis.reproduce.experiments import Experiment, Setting
from stvit_cli.analysis.reproduce.found_run import FoundRun
from stvit_cli.analysis.reproduce.scores import scores_by_seed
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.yaml import flow
from stvit_cli.utils import strict_json
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.text import shell_command

FORMAT = 1
NEAR = 2
"""A run that differs from a setting in at most this number of keys is reported as near."""


def same_setting(run: Recipe, setting: Setting) -> list[recipe_io.Change]:
    """Return the keys in which a run's recipe differs from a setting; seed, device, threads and paths are none of them."""
    return [change for change in recipe_io.difference(setting.recipe, run) if change.key != "train.seed"]


class Collected(NamedTuple):
    """The runs of an experiment that were found."""

    lines: dict[str, dict[str, Any]]
    """The line of each finished run, by its key."""
    paths: dict[str, Path]
    """Their directories, by the same keys."""
    notes: list[str]
    """Sentences on runs that are not finished, or that nearly fit."""


def collect(experiment: Experiment, runs: Iterable[FoundRun]) -> Collected:
    """Find the runs of an experiment among others, by their recipes.

    Args:
        experiment: the definition.
        runs: run directories, of any experiments.
    """
    lines, paths, notes = found = Collected({}, {}, [])
    nearest: tuple[int, str] | None = None
    for run in runs:
        changes = {setting.label: same_setting(run.recipe, setting) for setting in experiment.settings}
        label = min(changes, key=lambda name: len(changes[name]))
        if differing := changes[label]:
            shown = ", ".join(f"{change.key} is {flow(change.new)}, not {flow(change.old)}" for change in differing[:NEAR])
            more = f", and {len(differing) - NEAR} more" if len(differing) > NEAR else ""
            sentence = f"{run.path} is not a run of {label}: {shown}{more}."
            if len(differing) <= NEAR:
                notes.append(sentence)
            nearest = min(nearest or (len(differing), sentence), (len(differing), sentence))
            continue
        result = run.result(experiment.score)
        damage = "".join(f" {problem}" for problem in run.problems)
        if result is None:
            notes.append(f"{run.path}, of {label}, is not finished: {run.progress}.{damage}")
            continue
        if not run.has_provenance:
            notes.append(f"{run.path}, of {label}, is left out: its figures need version, machine and date.{damage}")
            continue
        if damage:
            notes.append(f"{run.path}, of {label}:{damage}")
        seed = run.recipe.train.seed
        key = f"{label}, seed {seed}"
        if key in lines:
            notes.append(f"{run.path} is a second run of {key}; the first one found is kept.")
            continue
        lines[key], paths[key] = run_line(experiment, experiment.setting(label), run, result), run.path
    if nearest is not None and not lines and not notes:
        notes.append(nearest[1])
    return found


def run_line(experiment: Experiment, setting: Setting, run: FoundRun, result: RunResult) -> dict[str, Any]:
    """Return the line of a finished run.

    Its recipe hash is that of the setting: the run may have another number of workers or another device.
    """
    return {
        "setting": setting.label,
        "seed": result.seed,
        **{name: round(result.metrics[name], 4) for name in experiment.metrics if name in result.metrics},
        "weights": result.weights,
        **run.provenance(result),
        "recipe_hash": recipe_io.recipe_hash(setting.of_seed(result.seed)),
        "command": shell_command(*setting.command(result.seed)),
    }


def build(
    experiment: Experiment, runs: Mapping[str, Mapping[str, Any]], parts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the results of an experiment as the content of its JSON file.

    Args:
        experiment: the definition.
        runs: the lines of runs, by key.
        parts: what else was measured, by name and key: ``pairs``, ``speed``.
    """
    ordered = _ordered(experiment, runs)
    published = experiment.published
    values = published.get("values", {})
    lines = {name: {"value": value} for name, value in values.items()}
    lines |= {setting.label: {"value": setting.published} for setting in experiment.settings if setting.published is not None}
    return {
        "format": FORMAT,
        "name": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "command": f"stvit reproduce {experiment.name}",
        "score": experiment.score,
        "metrics": list(experiment.metrics),
        "notes": list(experiment.notes),
        "published_what": published.get("what"),
        "published_source": published.get("source"),
        "settings": {setting.label: _summary(experiment, setting, ordered) for setting in experiment.settings},
        "differences": _differences(experiment, ordered),
        "runs": ordered,
        "published": lines,
        **(parts or {}),
    }


def _ordered(experiment: Experiment, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the runs in the order of settings and seeds; what is of no setting of today's definition is left out."""
    places = {setting.label: place for place, setting in enumerate(experiment.settings)}
    own = {key: dict(line) for key, line in runs.items() if line["setting"] in places}
    return dict(sorted(own.items(), key=lambda item: (places[item[1]["setting"]], item[1]["seed"])))


def _summary(experiment: Experiment, setting: Setting, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line of a setting: mean, spread and interval over its seeds."""
    own = {line["seed"]: line for line in runs.values() if line["setting"] == setting.label}
    line: dict[str, Any] = {"recipe": setting.recipe_name, "overrides": " ".join(setting.words), "seeds": sorted(own)}
    line["seeds_missing"] = [seed for seed in range(setting.seeds) if seed not in own]
    for name in experiment.metrics:
        values = [own[seed][name] for seed in sorted(own) if name in own[seed]]
        prefix = "" if name == experiment.metric else f"{name}_"
        line |= {f"{prefix}{key}": value for key, value in spread(values).items()}
    for name in ("params", "epochs", "minutes", "images_per_second"):
        known = [each[name] for each in own.values() if each.get(name) is not None]
        line[name] = None if not known else known[0] if name == "params" else round(fmean(known), 1)
    line["published"] = setting.published
    return line


def _differences(experiment: Experiment, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the line of each comparison of two settings: the difference of the main metric, paired by seed."""
    scores = scores_by_seed(_labels(experiment), experiment.metric, runs)
    machines = {(line["setting"], line["seed"]): line["machine"] for line in runs.values()}
    result = {}
    for label, other in experiment.comparisons:
        seeds = sorted(scores[label].keys() & scores[other].keys())
        pairs = [scores[label][seed] - scores[other][seed] for seed in seeds]
        mixed = [seed for seed in seeds if machines[label, seed] != machines[other, seed]]
        published = [experiment.setting(name).published for name in (label, other)]
        known = published[0] is not None and published[1] is not None
        gap = round(published[0] - published[1], 4) if known else None  # type: ignore[operator]
        result[f"{label} minus {other}"] = {
            "of": label,
            "minus": other,
            **spread(pairs),
            "num_seeds": len(pairs),
            "seeds_of_two_machines": mixed,
            "published": gap,
        }
    return result


def _labels(experiment: Experiment) -> list[str]:
    return [setting.label for setting in experiment.settings]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return ``mean``, ``std``, and the ends ``low`` and ``high`` of the 95 % interval of the mean over seeds; see `estimate`.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        {'mean': 2.0, 'std': 1.0, 'low': -0.4841, 'high': 4.4841}
    """
    found = estimate(values)
    if found is None:
        return {"mean": None, "std": None, "low": None, "high": None}
    ends = {"mean": found.mean, "std": found.std, "low": found.low, "high": found.high}
    return {name: None if value is None else round(value, 4) for name, value in ends.items()}


def needs_extra_seed(experiment: Experiment, runs: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the labels of settings of which one seed more decides: differences of two of them disagree in sign."""
    if not experiment.extra_seed:
        return set()
    scores = scores_by_seed(_labels(experiment), experiment.metric, runs)
    unclear: set[str] = set()
    for label, other in experiment.comparisons:
        seeds = range(min(experiment.setting(label).seeds, experiment.setting(other).seeds))
        if all(seed in scores[label] and seed in scores[other] for seed in seeds):
            signs = {scores[label][seed] > scores[other][seed] for seed in seeds}
            unclear |= {label, other} if len(signs) > 1 else set()
    return unclear


def read_earlier(path: Path) -> dict[str, Any]:
    """Return the content of an earlier JSON file; empty where there is none.

    Raises:
        UserError: it is no such file, or damaged: written again, it would lose the runs in it.
    """
    if not path.exists():
        return {}
    content = strict_json.read_object(path)
    if not isinstance(content.get("runs"), dict):
        raise UserError(f"{path} cannot be read as the results of an experiment.\nMove it away, or write to another --output.")
    return content


def replaced(earlier: Mapping[str, Mapping[str, Any]], found: Collected, metrics: Sequence[str]) -> list[str]:
    """Return a sentence for each earlier line in whose place another run with other scores was found."""
    sentences = []
    for key, line in found.lines.items():
        before = earlier.get(key, line)
        both = [name for name in metrics if name in line and name in before]
        changed = [f"{name} {line[name]:g}, before {before[name]:g}" for name in both if line[name] != before[name]]
        if changed:
            sentences.append(f"{found.paths[key]} takes the place of another run of {key}: {'; '.join(changed)}.")
    return sentences


def known_parts(content: Mapping[str, Any], runs: Mapping[str, object]) -> dict[str, Any]:
    """Return what else was measured in an earlier JSON file, as long as its runs are known.

    Args:
        content: of the file.
        runs: the known ones, by key.
    """
    labels = {key.rpartition(", seed ")[0] for key in runs}
    pairs = {key: line for key, line in content.get("pairs", {}).items() if {line["first"], line["second"]} <= runs.keys()}
    speed = {label: line for label, line in content.get("speed", {}).items() if label in labels}
    parts: dict[str, Any] = {"pairs": pairs, "speed": speed}
    names = ("superpixels", "superpixel_differences", "superpixel_notes", "superpixel_runs")
    if all("components" in line for line in content.get("superpixels", {}).values()):  # files of earlier versions lack it
        parts |= {name: content.get(name, {}) for name in names}
    return {name: part for name, part in parts.items() if part}


def known_runs(content: Mapping[str, Any], experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the lines of runs in an earlier JSON file whose settings have not changed since.

    Args:
        content: of the file.
        experiment: the definition of today.
    """
    now = {setting.label: setting for setting in experiment.settings}
    lines = content.get("runs", {})
    return {
        key: line
        for key, line in lines.items()
        if line["setting"] in now and line["recipe_hash"] == recipe_io.recipe_hash(now[line["setting"]].of_seed(line["seed"]))
    }


def as_text(results: Mapping[str, Any]) -> str:
    """Return the content of a JSON file, with one line for each run, setting and published value."""
    parts = []
    for key, value in results.items():
        if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
            lines = ",\n".join(f"    {json.dumps(name)}: {strict_json.dumps(item)}" for name, item in value.items())
            parts.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {strict_json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(results: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write NAME.json and NAME.md, and NAME.svg where there are settings to compare. Raises UserError where that fails.

    Returns:
        The paths of the first two.
    """
    from stvit_cli.analysis.reproduce.markdown import as_markdown, has_plot

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{results['name']}.json", folder / f"{results['name']}.md"
    contents = {path: text.encode() for path, text in zip(paths, (as_text(results), as_markdown(results)), strict=True)}
    if has_plot(results):
        from stvit_cli.analysis.reproduce.plot import draw_results

        contents[folder / f"{results['name']}.svg"] = draw_results(results)
    for path, content in contents.items():
        with writing(path):
            replace_file(path, content)
    return paths
