"""The tables of ``stvit profile --roofline``."""

from __future__ import annotations

from typing import Any, Literal

from stvit_cli.cli.output import echo, print_table, reporting

FORM_COLUMNS = ["model", "form", "TFLOP", "GB", "launches", "launching, ms", "device, ms", "share of peak", "images/s"]
FAMILY_COLUMNS = ["phase", "operators", "calls", "GFLOP", "GB", "FLOP/byte", "bound by"]


def profile_roofline(
    names: list[str],
    gpu: str,
    image_size: tuple[int, int],
    batch_size: int,
    precision: Literal["fp32", "bf16"],
    train: bool,
    json_file: str | None,
) -> None:
    """Print what bounds a step: each model in each form, then each model by operator. The arguments are `roofline`'s."""
    with reporting(json_file) as report:
        from stvit_cli.analysis.cost.roofline import roofline

        rows = roofline(names, gpu, image_size, batch_size, precision, train)
        _print_forms(rows)
        for row in rows:
            echo("")
            _print_families(row)
        report(rows)


def _print_forms(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    how = f"{first['mode']}, batch {first['batch_size']}, {first['precision']}"
    lines = []
    for row in rows:
        for form, step in row["forms"].items():
            cells = [f"{step['flops'] / 1e12:.2f}", f"{step['bytes'] / 1e9:.1f}", str(step["launches"])]
            cells += [f"{step['launch_ms']:.2f}", f"{step['device_ms']:.2f}", f"{step['share_of_peak']:.0%}"]
            lines.append([row["model"], form, *cells, f"{step['images_per_second']:.0f}"])
    title = f"Roofline, {first['gpu']}: {how}; least times and largest throughput, by counting: nothing was run"
    print_table(FORM_COLUMNS, lines, title, right=range(2, len(FORM_COLUMNS)))


def _print_families(row: dict[str, Any]) -> None:
    """Print a model by phase and kind of operator: counts of the eager form, and milliseconds of all forms."""
    forms = [form for form in row["forms"] if form != "products"]
    by_form = {form: {(o["phase"], o["family"]): o for o in row["forms"][form]["operators"]} for form in forms}
    keys = {key: None for form in forms for key in by_form[form]}
    phases = list(dict.fromkeys(phase for phase, _ in keys))
    longest = {key: max(by_form[form][key]["ms"] for form in forms if key in by_form[form]) for key in keys}
    lines = []
    for key in sorted(keys, key=lambda key: (phases.index(key[0]), -longest[key])):
        shown = next(by_form[form][key] for form in forms if key in by_form[form])
        cells = [str(shown["calls"]), f"{shown['flops'] / 1e9:.0f}", f"{shown['bytes'] / 1e9:.2f}", f"{shown['intensity']:.1f}"]
        times = [f"{by_form[form][key]['ms']:.2f}" if key in by_form[form] else "-" for form in forms]
        lines.append([*key, *cells, shown["bound"], *times])
    columns = [*FAMILY_COLUMNS, *forms]
    title = f"{row['model']}: least milliseconds by operator; counts of the first form that has it"
    print_table(columns, lines, title, right=[*range(2, 6), *range(7, len(columns))])
