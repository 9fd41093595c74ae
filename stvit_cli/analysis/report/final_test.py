"""The section of a run's report about its test set."""

from __future__ import annotations

from stvit_cli import tasks
from stvit_cli.analysis.report.run_files import MAIN_METRICS, Run
from stvit_cli.engine.kept_evaluation import read_kept
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.tasks.report_parts import Metric, MetricsPart, Part, ReportSection, TextPart
from stvit_cli.utils.metric_names import metric_name, metric_with_unit
from stvit_cli.utils.views import Views


def final_test_section(run: Run) -> ReportSection | None:
    """Return the metrics of the best weights on the test set, with intervals where its predictions are kept; None without one.

    Args:
        run: the run.
    """
    row = run.test
    if row is None:
        return None
    spec = tasks.registry.get(run.recipe.task)
    kept = None if spec.read_predictions is None else read_kept(RunDir(run.path), spec.read_predictions, of="test")
    parts: list[Part] = [TextPart([sentence(row)])]
    if kept is not None and spec.metrics_section is not None:
        parts += spec.metrics_section(kept[1]).parts
    else:
        names = [name for name, value in row.items() if isinstance(value, float) and metric_name(name).in_row]
        parts.append(MetricsPart([Metric(name, row[name], unit=metric_name(name).unit) for name in names]))
    return ReportSection("test", "Test set", parts, "Images that chose nothing: neither the weights nor a value of the recipe.")


def sentence(row: dict[str, object]) -> str:
    """Return what the row of the test set says.

    >>> sentence({"top1": 95.31, "num_images": 10000, "split": "t10k", "weights": "ema", "hflip": False})
    'On the 10000 images of t10k the moving average (EMA) of the weights has top-1 95.31 %; they were evaluated once, at the end.'
    """
    name = next((name for name in MAIN_METRICS if isinstance(row.get(name), int | float)), "loss")
    value, num_images = row.get(name), row.get("num_images")
    assert isinstance(value, int | float)
    assert isinstance(num_images, int | float)
    whose = "the moving average (EMA) of the weights has" if row.get("weights") == "ema" else "the best weights have"
    views = Views.of(row)
    averaged = f", the logits averaged with those of {views}" if str(views) else ""
    shown = metric_with_unit(name, value, num_images)
    return (
        f"On the {int(num_images)} images of {row.get('split')} {whose} {metric_name(name).label} {shown}{averaged}; "
        "they were evaluated once, at the end."
    )
