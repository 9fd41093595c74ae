"""Results as a Markdown page: the table of settings, the runs behind it, and what is published. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stvit_cli.analysis.reproduce.comparisons import baseline_of, clear, sentences, significant_pairs
from stvit_cli.utils.metric_names import metric_name
from stvit_cli.utils.text import markdown_table

SCORES = {
    "test": "The score of a run is the only evaluation on the test set, after training, of the weights that were best on the "
    "validation images; nothing was chosen on the test set.",
    "last": "The score of a run is its evaluation after the last step, on the validation images; no best epoch was chosen.",
}
UNIT_LABELS = {"%": ", %", "": ""}


def as_markdown(results: Mapping[str, Any]) -> str:
    """Return the page of an experiment's results.

    Args:
        results: the content of its JSON file.
    """
    name = results["name"]
    lines = [f"# {results['title']}", "", results["question"], ""]
    lines += [
        f"Reproduce with `{results['command']}`. Written from [{name}.json]({name}.json), which has a line for every figure.",
        "",
    ]
    if results["runs"]:
        lines += [*_settings(results), "", *_sentences(results), *_plot(results), *_differences(results), *_pairs(results)]
        lines += _superpixels(results)
        lines += _runs(results)
    else:
        lines += ["No run has finished yet.", ""]
    lines += _published(results)
    return "\n".join(lines).rstrip("\n") + "\n"


def has_plot(results: Mapping[str, Any]) -> bool:
    """Whether there are settings to compare, with an interval: then NAME.svg is beside the page."""
    settings = results["settings"].values()
    return sum(line["mean"] is not None for line in settings) > 1 and any(line["low"] is not None for line in settings)


def _plot(results: Mapping[str, Any]) -> list[str]:
    if not has_plot(results):
        return []
    alt = f"{heading(results['metrics'][0])} of each setting, with its interval"
    lines, differences = [f"![{alt}]({results['name']}.svg)", ""], results["differences"]
    if any(clear(line) for line in differences.values()):
        baseline = baseline_of(differences)
        of = "a difference of it, below," if baseline is None else f"its difference from {baseline}"
        lines += [f"Blue: the interval of {of} excludes zero.", ""]
    return lines


def _settings(results: Mapping[str, Any]) -> list[str]:
    main, *others = results["metrics"]
    settings = results["settings"]
    has_published = any(line["published"] is not None for line in settings.values())
    columns = ["setting", f"{heading(main)}: mean ± deviation", "95 % interval", "seeds"]
    columns += [heading(name) for name in others]
    speed = results.get("speed", {})
    columns += ["parameters", "images/s in training", *["images/s in inference"] * bool(speed), "epochs", "minutes"]
    columns += ["published"] * has_published
    rows = []
    for label, line in settings.items():
        if not line["seeds"]:
            continue
        row = [label, _mean(line), _interval(line), _seeds(line)]
        row += [_number(line[f"{name}_mean"]) for name in others]
        row += [_count(line["params"]), _plain(line["images_per_second"])]
        row += [_plain(speed[label]["images_per_second"] if label in speed else None)] * bool(speed)
        row += [_plain(line["epochs"]), _plain(line["minutes"])]
        row += [_plain(line["published"])] * has_published
        rows.append(row)
    return markdown_table(columns, rows)


def _sentences(results: Mapping[str, Any]) -> list[str]:
    settings, runs = results["settings"], results["runs"]
    missing = [f"{label} (seed {', '.join(map(str, line['seeds_missing']))})" for label, line in settings.items()]
    missing = [text for text, line in zip(missing, settings.values(), strict=True) if line["seeds_missing"]]
    lines = [SCORES[results["score"]]]
    if any(len(line["seeds"]) > 1 for line in settings.values()):
        lines.append("Intervals are of the mean over the seeds, by Student's distribution; differences are paired by seed.")
    machines = sorted({f"{line['machine']}, {line['threads']} thread{'s' * (line['threads'] != 1)}" for line in runs.values()})
    lines.append(f"Measured on: {'; '.join(machines)}. Minutes are those of training and evaluations, of one run.")
    lines += [_of_speed(line) for line in list(results.get("speed", {}).values())[:1]]
    lines += results["notes"]
    if missing:
        lines.append(f"Not finished yet: {'; '.join(missing)}.")
    return [*(f"- {line}" for line in lines), ""]


def _differences(results: Mapping[str, Any]) -> list[str]:
    lines = {key: line for key, line in results["differences"].items() if line["mean"] is not None}
    if not lines:
        return []
    has_published = any(line["published"] is not None for line in lines.values())
    label = metric_name(results["metrics"][0]).label
    columns = ["settings", f"difference of {label}, points", "95 % interval", "seeds", *["published"] * has_published]
    rows = [
        [key, f"{line['mean']:+.2f}", _interval(line, "+"), str(line["num_seeds"])]
        + ([_plain(line["published"], "+")] if has_published else [])
        for key, line in lines.items()
    ]
    notes = [f"- {sentence}" for sentence in sentences(lines)]
    return ["## Differences", "", *markdown_table(columns, rows), "", *notes, *[""] * bool(notes)]


def _of_speed(line: Mapping[str, Any]) -> str:
    return (
        f"Images/s in inference: medians of interleaved rounds, batch {line['batch_size']}, {line['precision']}, on "
        f"{line['machine']}, {line['threads']} thread{'s' * (line['threads'] != 1)}."
    )


def _pairs(results: Mapping[str, Any]) -> list[str]:
    pairs = results.get("pairs")
    if not pairs:
        return []
    columns = ["pair", "images", "only the first is right", "only the second is right", "p"]
    rows = [
        [key, str(pair["num_images"]), str(pair["only_first"]), str(pair["only_second"]), _p_value(pair["p_value"])]
        for key, pair in pairs.items()
    ]
    text = (
        "McNemar's exact test on the images of the test set, seed by seed: does one model get more of them right than the other?"
    )
    return ["## Paired tests", "", text, "", *markdown_table(columns, rows), "", significant_pairs(pairs), ""]


def _superpixels(results: Mapping[str, Any]) -> list[str]:
    rows = results.get("superpixels")
    if not rows:
        return []
    metrics = ("boundary_recall", "undersegmentation_error", "accuracy")
    columns = ["weights", "layer", "stride", "segmentation", "segments", "connected parts", "boundary pixels"]
    columns += [name.replace("_", " ") for name in metrics]
    cells = [
        [
            f"{line['setting']}, {'trained' if line['trained'] else 'untrained'}",
            line["layer"],
            str(line["stride"]),
            line["segmentation"],
            *(_plain(line[name]) for name in ("segments", "components")),
            "-" if line["boundary_share"] is None else f"{line['boundary_share']:.3f}",
            *(f"{line[name]:.3f} ({line[f'{name}_low']:.3f} to {line[f'{name}_high']:.3f})" for name in metrics),
        ]
        for line in rows.values()
        if line["trained"] or line["segmentation"] == "super tokens"
    ]
    plots = ["![Metrics by layer](superpixels/plot.svg)", "", "![The first scenes](superpixels/scenes.png)"]
    notes = [f"- {note}" for note in results["superpixel_notes"]]
    return ["## Super tokens as superpixels", "", *markdown_table(columns, cells), "", *notes, "", *plots, ""]


def _runs(results: Mapping[str, Any]) -> list[str]:
    metrics = results["metrics"]
    columns = [
        "setting",
        "seed",
        *map(heading, metrics),
        "minutes",
        "images/s",
        "threads",
        "version",
        "recipe",
        "date",
        "command",
    ]
    rows = [
        [
            line["setting"],
            str(line["seed"]),
            *(_number(line.get(name)) for name in metrics),
            _plain(line["minutes"]),
            _plain(line["images_per_second"]),
            _plain(line["threads"]),
            str(line["version"]),
            f"`{line['recipe_hash']}`",
            str(line["date"]),
            f"`{line['command']}`",
        ]
        for line in results["runs"].values()
    ]
    return ["## Runs", "", *markdown_table(columns, rows), ""]


def _published(results: Mapping[str, Any]) -> list[str]:
    published = results["published"]
    if not published:
        return []
    own = {
        f"**{label}, here**": line["mean"]
        for label, line in results["settings"].items()
        if line["mean"] is not None and label not in published
    }
    values = {name: line["value"] for name, line in published.items()} | own
    ordered = sorted(values.items(), key=lambda item: item[1])
    rows = [[name, _plain(value) if name in published else _number(value)] for name, value in ordered]
    what = results["published_what"]
    return [
        "## Published",
        "",
        f"{what}. Source: {results['published_source']}.",
        "",
        *markdown_table(["model", heading(results["metrics"][0])], rows),
        "",
    ]


def heading(metric: str) -> str:
    """Return a metric's name with its unit: ``top-1, %``."""
    own = metric_name(metric)
    return f"{own.label}{UNIT_LABELS[own.unit]}"


def _mean(line: Mapping[str, Any]) -> str:
    if line["mean"] is None:
        return "-"
    return f"{line['mean']:.2f}" + ("" if line["std"] is None else f" ± {line['std']:.2f}")


def _interval(line: Mapping[str, Any], sign: str = "") -> str:
    return "-" if line["low"] is None else f"{line['low']:{sign}.2f} to {line['high']:{sign}.2f}"


def _seeds(line: Mapping[str, Any]) -> str:
    total = len(line["seeds"]) + len(line["seeds_missing"])
    return str(total) if not line["seeds_missing"] else f"{len(line['seeds'])} of {total}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _plain(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}g}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f} M"


def _p_value(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
