"""The table of an ablation: scores of each setting over the seeds, and the differences from the first setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvit_cli import __version__
from stvit_cli.analysis.ablation.notes import notes_on
from stvit_cli.analysis.ablation.plot import PlotLine, draw
from stvit_cli.analysis.ablation.rows import Row, TableRun
from stvit_cli.analysis.ablation.runs import Run
from stvit_cli.analysis.ablation.settings import Setting
from stvit_cli.analysis.ablation.statistics import CONFIDENCE, Estimate, paired_difference
from stvit_cli.analysis.ablation.training import what_failed
from stvit_cli.recipe import Recipe
from stvit_cli.recipe.io import recipe_hash
from stvit_cli.utils import strict_json
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.metric_names import metric_name
from stvit_cli.utils.text import markdown_table, shell_command


@dataclass(frozen=True)
class AblationTable:
    """The table of an ablation.

    Attributes:
        path: directory of the runs.
        recipe: shared by the runs.
        rows: one for each setting; the first is the one that the others are compared with.
        failed: which runs failed and how to try them again; None where none did, or by divergence.
    """

    path: Path
    recipe: Recipe
    rows: tuple[Row, ...]
    failed: str | None = None

    @property
    def metric(self) -> str | None:
        """Name of the score, such as top1; None before a run has finished."""
        return next((result.metric for row in self.rows for result in row.results), None)

    @property
    def title(self) -> str:
        """One line."""
        return f"Ablation of {self.recipe.name}"

    def notes(self) -> list[str]:
        """Return the sentences below the table: what a score is, how sure it is, what failed and what is missing."""
        return notes_on(self.rows)

    def columns(self) -> tuple[str, ...]:
        """Return the column headings."""
        label = "score" if self.metric is None else f"{metric_name(self.metric).label} %"
        baseline = self.rows[0].setting.name
        return ("setting", label, "95 % interval", "seeds", f"vs. {baseline}", "parameters", "min", "images/s")

    def cells(self) -> list[list[str]]:
        """Return the cells as text, row by row."""
        return [_cells(row, number == 0) for number, row in enumerate(self.rows)]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of table.json."""
        return {
            "title": self.title,
            "recipe": self.recipe.name,
            "recipe_hash": recipe_hash(self.recipe),
            "version": __version__,
            "metric": self.metric,
            "confidence": CONFIDENCE,
            "baseline": self.rows[0].setting.name,
            "rows": [row.to_dict() for row in self.rows],
            "notes": self.notes(),
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each run, for ``pandas.DataFrame``: the setting's keys, seed, status, score and the others."""
        left_out = ("metrics", "error")
        return [
            {"setting": row.setting.name, **row.setting.values}
            | {key: value for key, value in run.to_dict().items() if key not in left_out}
            for row in self.rows
            for run in row.runs
        ]

    def markdown(self) -> str:
        """Return title, table and notes as Markdown."""
        lines = [f"# {self.title}", "", *markdown_table(self.columns(), self.cells(), right=True), ""]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes())]) + "\n"

    def write(self, directory: Path | None = None) -> None:
        """Write table.json, table.md and table.svg.

        Args:
            directory: where; by default that of the runs.

        Raises:
            UserError: a file cannot be written.
        """
        directory = directory or self.path
        contents = {
            "table.json": strict_json.dumps(self.to_dict(), indent=2).encode() + b"\n",
            "table.md": self.markdown().encode(),
            "table.svg": draw([_plot_line(row) for row in self.rows], self.title, self.columns()[1]),
        }
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with writing(directory / name):
                replace_file(directory / name, content)


def make_table(path: Path, recipe: Recipe, settings: Sequence[Setting], runs: Mapping[str, Sequence[Run]]) -> AblationTable:
    """Read the runs of an ablation and compare the settings with the first one.

    Args:
        path: directory of the runs.
        recipe: shared by the runs.
        settings: in the order of the table.
        runs: of each setting, by its name.
    """
    rows: list[Row] = []
    for setting in settings:
        read = tuple(TableRun(run.path.name, run.seed, run.result, run.failure) for run in runs[setting.name])
        row = Row(setting, read, None, recipe_hash(runs[setting.name][0].recipe))
        difference = paired_difference(rows[0].scores, row.scores) if rows else None
        rows.append(Row(setting, read, difference, row.recipe_hash))
    failed = what_failed([run for of_setting in runs.values() for run in of_setting], resume_command(path))
    return AblationTable(path, recipe, tuple(rows), failed)


def resume_command(path: Path) -> str:
    """Return the command that resumes the ablation in a directory."""
    return shell_command("stvit", "ablate", "--resume", path)


def _plot_line(row: Row) -> PlotLine:
    return PlotLine(row.setting.name, tuple(row.scores.values()), row.difference is not None and row.difference.excludes_zero)


def _cells(row: Row, is_baseline: bool) -> list[str]:
    score, difference = row.score, row.difference
    counted = str(len(row.scores)) if len(row.scores) == len(row.runs) else f"{len(row.scores)} of {len(row.runs)}"
    others = [run.status for run in row.runs if run.status in ("failed", "diverged")]
    states = [f"{others.count(status)} {status}" for status in dict.fromkeys(others)]
    return [
        row.setting.name,
        "-" if score is None else f"{score.mean:.2f}",
        _interval(score, "{:.2f}"),
        ", ".join([counted, *states]),
        "-" if difference is None or is_baseline else f"{difference.mean:+.2f} {_interval(difference, '{:+.2f}', '')}".rstrip(),
        "-" if row.params is None else f"{row.params / 1e6:.2f} M" if row.params >= 1e5 else str(row.params),
        "-" if row.minutes is None else f"{row.minutes:.1f}",
        "-" if row.images_per_second is None else f"{row.images_per_second:.0f}",
    ]


def _interval(value: Estimate | None, style: str, none: str = "-") -> str:
    if value is None or value.low is None or value.high is None:
        return none
    return f"[{style.format(value.low)}, {style.format(value.high)}]"
