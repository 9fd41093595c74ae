"""The rows of an ablation's table: a setting, its runs, and its difference from the first setting."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from stvit_cli.analysis.ablation.results import RunResult
from stvit_cli.analysis.ablation.runs import Failure
from stvit_cli.analysis.ablation.settings import Setting
from stvit_cli.analysis.ablation.statistics import Estimate, estimate


@dataclass(frozen=True)
class TableRun:
    """A run in the table.

    Attributes:
        name: of its directory.
        seed: of the run.
        result: what it achieved; None: it has not finished.
        failure: why it ended without a score; None: it did not.
    """

    name: str
    seed: int
    result: RunResult | None
    failure: Failure | None

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``diverged`` or ``unfinished``."""
        return "finished" if self.result is not None else "unfinished" if self.failure is None else self.failure.kind

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of this run in table.json."""
        result = None if self.result is None else self.result.to_dict()
        error = None if self.failure is None else self.failure.message
        return {"run": self.name, "seed": self.seed, "status": self.status, "error": error} | (result or {})


@dataclass(frozen=True)
class Row:
    """A setting in the table.

    Attributes:
        setting: what is changed.
        runs: one for each seed.
        difference: from the first setting, paired by seed; None for the first, and where no seed has finished in both.
        recipe_hash: of the setting's recipe with the first seed.
    """

    setting: Setting
    runs: tuple[TableRun, ...]
    difference: Estimate | None
    recipe_hash: str

    @property
    def results(self) -> list[RunResult]:
        """Of the runs that have finished."""
        return [run.result for run in self.runs if run.result is not None]

    @property
    def scores(self) -> dict[int, float]:
        """In percent, by seed."""
        return {result.seed: result.score for result in self.results}

    @property
    def score(self) -> Estimate | None:
        """The mean score with its interval; None where no run has finished."""
        return estimate(list(self.scores.values()))

    @property
    def params(self) -> int | None:
        """Number of parameters."""
        return next((result.params for result in self.results if result.params is not None), None)

    @property
    def minutes(self) -> float | None:
        """Of training and evaluation, on average over the runs."""
        return fmean(result.minutes for result in self.results) if self.results else None

    @property
    def images_per_second(self) -> float | None:
        """In training, on average over the runs."""
        rates = [result.images_per_second for result in self.results if result.images_per_second is not None]
        return fmean(rates) if rates else None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of this setting in table.json."""
        score = self.score
        return {
            "setting": self.setting.name,
            "values": dict(self.setting.values),
            "scores": {str(seed): value for seed, value in self.scores.items()},
            "mean": None if score is None else score.mean,
            "std": None if score is None else score.std,
            "interval": None if score is None else score.to_dict()["interval"],
            "difference": None if self.difference is None else self.difference.to_dict(),
            "params": self.params,
            "minutes": self.minutes,
            "images_per_second": self.images_per_second,
            "recipe_hash": self.recipe_hash,
            "versions": sorted({result.version for result in self.results}),
            "machines": sorted({result.machine for result in self.results}),
            "runs": [run.to_dict() for run in self.runs],
        }
