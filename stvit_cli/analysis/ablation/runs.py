"""A run of an ablation: an ordinary run in a directory of its own, beside it the recipe, the log and why it failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stvit_cli.analysis.ablation.results import RunResult, read_result
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils import strict_json
from stvit_cli.utils.files import replace_file, writing

DIVERGED = "not finite"
"""In every message about a loss, gradient, weight or output that is infinite or not a number."""
MAX_LINES = 4
"""Of a failed run's message that are kept."""


@dataclass(frozen=True)
class Failure:
    """Why a run has no score.

    Attributes:
        kind: ``diverged``: its loss, gradient or weights became infinite or NaN, which it would do again; or ``failed``.
        message: what was said.
    """

    kind: Literal["failed", "diverged"]
    message: str

    @classmethod
    def of(cls, message: str) -> Failure:
        """Return the failure that a message is about."""
        lines = [line for line in message.splitlines() if line.strip()]
        return cls("diverged" if DIVERGED in message else "failed", "\n".join(lines[:MAX_LINES]))


@dataclass(frozen=True)
class Run:
    """One training run of an ablation.

    Attributes:
        setting: name of its setting, such as ``model.num_iters=2``.
        seed: of the run.
        recipe: resolved for setting and seed.
        path: run directory.
        overrides: keys that a resumed run gets a new value of, such as ``data.dir``.
    """

    setting: str
    seed: int
    recipe: Recipe
    path: Path
    overrides: tuple[str, ...] = ()
    _finished: list[RunResult] = field(default_factory=list, compare=False, repr=False)  # read once: a finished run stays so

    @property
    def has_started(self) -> bool:
        """Whether there is something to resume."""
        return RunDir(self.path).recipe.is_file()

    @property
    def recipe_file(self) -> Path:
        """Where the recipe is written for a run that starts."""
        return self.path.with_name(f"{self.path.name}.yaml")

    @property
    def log_file(self) -> Path:
        """What a run in a process of its own prints."""
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def result(self) -> RunResult | None:
        """What the run achieved; None until it has finished."""
        if not self._finished and (found := read_result(self.path)) is not None:
            self._finished.append(found)
        return self._finished[0] if self._finished else None

    @property
    def score(self) -> float | None:
        """The main metric of the test split, or of the last evaluation, in percent; None until the run has finished."""
        result = self.result
        return None if result is None else result.score

    @property
    def failure(self) -> Failure | None:
        """Why the run ended without a score when it was last tried; None where it did not."""
        found = strict_json.read_object(self._failure_file)
        if self.score is not None or found.get("kind") not in ("failed", "diverged"):
            return None
        return Failure(found["kind"], str(found.get("message", "")))

    def note_failure(self, failure: Failure | None) -> None:
        """Write down why the run ended, or that it did not."""
        path = self._failure_file
        with writing(path):
            if failure is None:
                path.unlink(missing_ok=True)
            else:
                content = {"kind": failure.kind, "message": failure.message}
                replace_file(path, strict_json.dumps(content, indent=2).encode() + b"\n")

    @property
    def _failure_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.failure.json")

    def write_recipe(self) -> None:
        """Write the recipe that the run is started by."""
        with writing(self.recipe_file):
            self.recipe_file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.recipe_file, recipe_io.dump(self.recipe).encode())

    @property
    def is_diverged(self) -> bool:
        """Whether the run ended by a loss or weights that are not finite: trained again, it would do so again."""
        return self.failure is not None and self.failure.kind == "diverged"
