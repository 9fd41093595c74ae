"""What a comparison found, as rows, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stvit_cli.tasks.report_parts import ReportSection
from stvit_cli.utils.files import replace_file, writing


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other; the first one is the baseline. Rows are ready for ``pandas.DataFrame``.

    Attributes:
        runs: a row for each run: ``run``, ``path``, ``task``, ``model``, ``steps``, ``epochs``, ``images`` (test, where all runs
            have kept predictions of the same test set, otherwise validation), ``num_images``, ``evaluated``.
        notes: what cannot be compared, and why.
        recipes: a row for each run and key that differs: ``key``, ``run`` and ``value``, as YAML has it.
        metrics: a row for each run and metric: ``metric``, ``run``, ``value``, ``unit``, and of its difference from the
            ``baseline`` the value ``difference``, the 95 % interval ``low`` and ``high``, and for top-1 McNemar's ``p_value``;
            None where it is not defined.
        images: a row for each image that a run gets right and the baseline wrong, or the other way round; of tasks in which an
            image is not right or wrong, that it gets better or worse: ``image``, ``run``, ``baseline``, ``score``,
            ``baseline_score`` (0 to 1), ``truth``, ``predicted``, ``baseline_predicted``.
        sections: of the page.
    """

    runs: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    recipes: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    images: Sequence[Mapping[str, Any]]
    sections: Sequence[ReportSection] = field(repr=False, default=())

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the metrics as rows: ``pandas.DataFrame(comparison.to_rows())``."""
        return [dict(row) for row in self.metrics]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the page, as `stvit compare --json` writes it."""
        parts = {"runs": self.runs, "recipes": self.recipes, "metrics": self.metrics, "images": self.images}
        return {"notes": list(self.notes), **{name: [dict(row) for row in rows] for name, rows in parts.items()}}

    def to_html(self) -> str:
        """Return the page: one HTML file that loads nothing."""
        from stvit_cli.analysis.report.page import render

        names = [str(row["run"]) for row in self.runs]
        return render("Comparison of runs", f"{' · '.join(names)}; the baseline is {names[0]}", self.sections)

    def write(self, path: str | Path) -> Path:
        """Write the page. Raises UserError where that is not possible."""
        target = Path(path)
        with writing(target, advice=""):
            replace_file(target, self.to_html().encode())
        return target
