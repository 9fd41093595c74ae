"""The first section of a run's report: what came out, as sentences; and the last ones: environment and commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stvit_cli.analysis.report.parts import MAX_TILES
from stvit_cli.analysis.report.run_files import NO_METRICS, Run
from stvit_cli.engine.progress import duration
from stvit_cli.engine.run_lock import require_unlocked
from stvit_cli.errors import UserError
from stvit_cli.tasks.report_parts import Column, Metric, MetricsPart, Part, ReportSection, TablePart, TextPart
from stvit_cli.utils.metric_names import epoch_text, metric_name
from stvit_cli.utils.text import shell_command

MEANINGS = {
    "top1": "It names the right class of {value} of the validation images",
    "map": "Its mean average precision (mAP) over the classes is {value}",
    "box_ap": "Its box AP, COCO's average precision over IoU 0.50 to 0.95, is {value}",
    "miou": "Its mean IoU, the overlap of predicted and true regions over the classes, is {value}",
}

NUM_TILES = 4


def summary_section(run: Run, sections: Sequence[ReportSection], problems: Sequence[str]) -> ReportSection:
    """Return the summary.

    Args:
        run: the run.
        sections: of its task, whose intervals are shown here too.
        problems: lines on what is missing from the report.
    """
    parts: list[Part] = [TextPart(_sentences(run, _known(sections)))]
    warnings = [*_state(run), *problems]
    if warnings:
        parts.append(TextPart(warnings, kind="warning"))
    if run.best is not None and not _has_tiles(sections):
        parts.append(MetricsPart(_tiles(run, _known(sections))))
    return ReportSection("summary", "Summary", parts)


def _has_tiles(sections: Sequence[ReportSection]) -> bool:
    """Whether the metrics are tiles right below the summary, which need not be shown twice."""
    parts = [part for section in sections[:1] for part in section.parts if isinstance(part, MetricsPart)]
    return any(len(part.metrics) <= MAX_TILES for part in parts)


def _known(sections: Sequence[ReportSection]) -> dict[str, Metric]:
    """Return the metrics that have an interval in the task's sections."""
    parts = [part for section in sections for part in section.parts if isinstance(part, MetricsPart)]
    return {metric.name: metric for part in reversed(parts) for metric in part.metrics if metric.low is not None}


def _sentences(run: Run, known: dict[str, Metric]) -> list[str]:
    recipe, best = run.recipe, run.best
    first = f"{recipe.model.name} was trained for {recipe.task} by the recipe {recipe.name}"
    time_spent = seconds_spent(run)
    spent = f" in {duration(time_spent)}" if time_spent else ""
    first += f": {epoch_text(run.epoch)} epochs{spent}{_where(run)}."
    if best is None:
        return [first, "It has not been evaluated yet."]
    unit = "" if best.metric == "loss" else " %"
    value = f"{best.value:.2f}{unit}"
    metric = known.get(best.metric)
    interval = f" (95 % interval {metric.low:.2f} to {metric.high:.2f})" if metric is not None else ""
    meaning = MEANINGS.get(best.metric, f"Its {metric_name(best.metric).label} is {{value}}").format(value=value + interval)
    num_images = f", {run.num_images} of them" if best.metric == "top1" and run.num_images else ""
    averaged = " of the moving average (EMA)" if best.prefix else ""
    total = f" of {epoch_text(run.num_steps / run.steps_per_epoch)}" if run.num_steps and run.steps_per_epoch else ""
    return [
        first,
        f"{meaning}{num_images}. The best weights{averaged} are those after epoch {epoch_text(best.row['epoch'])}{total}.",
    ]


def _where(run: Run) -> str:
    device, count = run.environment.get("device"), run.environment.get("processes", 1)
    return "" if device is None else f" on {device}" + (f" in {count} processes" if count != 1 else "")


def seconds_spent(run: Run) -> float:
    """Return about how long training steps and evaluations took, from the speed that the metrics have."""
    seconds, before = 0.0, 0
    for row in run.train:
        if row.get("images_per_second"):
            seconds += (row["step"] - before) * run.recipe.train.global_batch_size / row["images_per_second"]
        before = row["step"]
    return seconds + sum(row.get("seconds") or 0.0 for row in run.evals)


def _state(run: Run) -> list[str]:
    """Return lines on a run that is not over."""
    lines = list(run.problems)
    try:
        require_unlocked(run.path)
    except UserError:
        return ["The run is still going: this is what it has so far.", *lines]
    if not run.is_complete:
        of = f" of {run.num_steps}" if run.num_steps else ""
        resume = shell_command("stvit", "train", "--resume", run.path)
        lines.insert(0, f"The run is not complete: it came to step {run.step}{of}. To resume it: {resume}")
    return lines


def _tiles(run: Run, known: dict[str, Metric]) -> list[Metric]:
    assert run.best is not None
    row, prefix, main = run.best.row, run.best.prefix, run.best.metric
    names = [name for name in row if name not in NO_METRICS and "/" not in name and not name.startswith("ema_")]
    names.sort(key=lambda name: name != main)
    tiles = []
    for name in names[:NUM_TILES]:
        value = row.get(prefix + name)
        unit = "" if name.endswith("loss") else "%"
        tiles.append(known.get(name) or Metric(name, value if isinstance(value, int | float) else None, unit=unit))
    return tiles


def environment_section(run: Run) -> ReportSection:
    """Return what the run ran on."""
    rows: list[list[str | float | int | None]] = []
    for key, value in run.environment.items():
        if key == "versions" and isinstance(value, dict):
            rows += [[name, str(version)] for name, version in value.items()]
        elif key == "command" and isinstance(value, list):
            rows.append([key, shell_command(*map(str, value))])
        else:
            rows.append([key, str(value)])
    part: Part = TablePart([Column("what"), Column("value")], rows)
    if not rows:
        part = TextPart(["environment.json is missing or cannot be read."], kind="warning")
    return ReportSection("environment", "Environment", [part], "Of the training; a resumed run keeps that of its start.")


def commands_section(run: Run) -> ReportSection:
    """Return the commands that reproduce the run and use it."""
    argv = run.environment.get("command")
    parts: list[Part] = []
    if isinstance(argv, list) and argv:
        name = Path(str(argv[0])).name
        is_ours = name in ("stvit", "__main__.py")
        given = shell_command(*(["stvit"] if is_ours else ["python", str(argv[0])]), *map(str, argv[1:]))
        parts.append(TextPart([given], "As it was started", "code"))
    versions = run.environment.get("versions", {})
    pins = [f"{name}=={version.partition('+')[0]}" for name, version in versions.items() if version[:1].isdigit()]
    again = [shell_command("pip", "install", *pins)] if pins else []
    again.append(shell_command("stvit", "train", "--recipe", run.path / "recipe.yaml", "--output", Path("runs/AGAIN")))
    started_from = run.environment.get("started_from")
    if isinstance(started_from, dict):
        source = Path(str(started_from.get("run")))
        again[-1] = shell_command(
            *("stvit", "train", "--resume", source, "--from-step", str(started_from.get("step"))),
            *("--recipe", run.path / "recipe.yaml", "--output", Path("runs/AGAIN")),
        )
    parts.append(TextPart(again, "The same run again", "code"))
    lines = [shell_command("stvit", "eval", run.path), shell_command("stvit", "predict", "IMAGE", "--weights", run.path)]
    lines += [shell_command("stvit", "report", run.path)]
    parts.append(TextPart(lines, "What to do with it", "code"))
    return ReportSection("commands", "Commands", parts)
