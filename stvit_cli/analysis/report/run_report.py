"""The report of a run: its own sections and those of its task. What cannot be had is said in its place, the rest is shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from stvit_cli import tasks
from stvit_cli.analysis.report.curves import curves_section
from stvit_cli.analysis.report.data_section import data_section
from stvit_cli.analysis.report.final_test import final_test_section
from stvit_cli.analysis.report.missing_data import MissingEvaluation
from stvit_cli.analysis.report.page import render
from stvit_cli.analysis.report.recipe_section import recipe_section
from stvit_cli.analysis.report.run_files import Run, read_run
from stvit_cli.analysis.report.speed import speed_section
from stvit_cli.analysis.report.summary import commands_section, environment_section, summary_section
from stvit_cli.analysis.report.super_tokens import super_tokens_section
from stvit_cli.analysis.run_predictions import predictions_of_run
from stvit_cli.engine.distributed import pick_device
from stvit_cli.errors import UserError
from stvit_cli.tasks.base import Evaluation, Task
from stvit_cli.tasks.data_view import DataView
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.predictions import Predictions
from stvit_cli.tasks.report_parts import ReportSection, TextPart
from stvit_cli.tasks.spec import ReportInput, Trained

logger = logging.getLogger(__name__)

_Thing = TypeVar("_Thing")


@dataclass(frozen=True)
class Sources:
    """What a report is made of beside the run's directory; a UserError says why a part cannot be had.

    Attributes:
        trained: the best weights.
        evaluation: the validation data.
        predictions: of the best weights for these data.
        view: the data set, to be counted.
        task: as it was trained, for its training samples.
        device: where the model runs.
    """

    trained: Trained | UserError
    evaluation: Evaluation | UserError
    predictions: Predictions | UserError | None
    view: DataView | UserError
    task: Task | UserError
    device: torch.device


def run_report(path: Path, *, task: Task | None = None, say: Callable[[str], None] = lambda stage: None) -> str:
    """Return the report of a run as a page.

    Args:
        path: the run directory.
        task: of the run, where it is built already.
        say: called with what is done next.

    Returns:
        HTML; see `page.render`.

    Raises:
        UserError: it is not the directory of a run, or its recipe cannot be read.
    """
    run = read_run(path)
    sources = _gather(run, task, say)
    say("drawing the page")
    started = str(run.environment.get("started", ""))[:16].replace("T", " ")
    subtitle = " · ".join(filter(None, [run.recipe.model.name, run.recipe.task, f"recipe {run.recipe.name}", started]))
    return render(path.resolve().name, subtitle, _sections(run, sources, say))


def _gather(run: Run, task: Task | None, say: Callable[[str], None]) -> Sources:
    recipe, spec = run.recipe, tasks.registry.get(run.recipe.task)
    device = pick_device(recipe.train.device) if _is_available(recipe.train.device) else torch.device("cpu")
    say("reading the run and its data")
    trained = _tried(lambda: open_trained(run.path))
    evaluation = _then(trained, lambda weights: tasks.build_evaluation(recipe, weights.info, whole=False))
    view_data = spec.view_data
    view = UserError("this task's data cannot be counted.") if view_data is None else _tried(lambda: view_data(recipe))
    own_task = task if task is not None else _then(view, lambda _: tasks.build(recipe))
    say("reading or making the predictions")
    predictions = _predictions(run, say)
    if isinstance(evaluation, UserError) and not isinstance(predictions, UserError) and predictions is not None:
        evaluation = MissingEvaluation(recipe.task, predictions.images, evaluation)
    return Sources(trained, evaluation, predictions, view, own_task, device)


def _predictions(run: Run, say: Callable[[str], None]) -> Predictions | UserError | None:
    """Return the predictions that the run has kept; where it has none of its best weights, those of an evaluation now."""
    if tasks.registry.get(run.recipe.task).read_predictions is None:
        return None
    found = _tried(lambda: predictions_of_run(run.path, say=say))
    return found if isinstance(found, UserError) else found.predictions


def _is_available(device: str) -> bool:
    """Whether a run's device is here: a report may be made on another machine."""
    if device == "cuda":
        return torch.cuda.is_available()
    return device != "mps" or torch.backends.mps.is_available()


def _tried(work: Callable[[], _Thing]) -> _Thing | UserError:
    try:
        return work()
    except UserError as error:
        return error


def _then(first: object, work: Callable[..., _Thing]) -> _Thing | UserError:
    return first if isinstance(first, UserError) else _tried(lambda: work(first))


def _sections(run: Run, sources: Sources, say: Callable[[str], None]) -> list[ReportSection]:
    """Return the sections in the order of the page: what came out, how, of what."""
    of_task, problems = _of_task(run, sources, say)
    say("looking at the data, the super tokens and the speed")
    trained = None if isinstance(sources.trained, UserError) else sources.trained
    evaluation = None if isinstance(sources.evaluation, UserError | MissingEvaluation) else sources.evaluation
    wanted: list[tuple[str, str, Callable[[], ReportSection | None]]] = [
        ("summary", "Summary", lambda: summary_section(run, of_task, problems)),
        ("test", "Test set", lambda: final_test_section(run)),
        *((section.id, section.title, _returning(section)) for section in of_task),
        ("curves", "Curves", lambda: curves_section(run)),
        ("data", "Data", lambda: data_section(run.recipe, sources.view, sources.task)),
        ("super-tokens", "Super tokens", lambda: _super_tokens(sources)),
        ("speed", "Speed and memory", lambda: speed_section(run, trained, evaluation, sources.device)),
        ("recipe", "Recipe", lambda: recipe_section(run)),
        ("environment", "Environment", lambda: environment_section(run)),
        ("commands", "Commands", lambda: commands_section(run)),
    ]
    return [section for item in wanted if (section := _guarded(*item)) is not None]


def _returning(section: ReportSection) -> Callable[[], ReportSection]:
    return lambda: section


def _super_tokens(sources: Sources) -> ReportSection | None:
    if isinstance(sources.trained, UserError) or isinstance(sources.view, UserError):
        return None
    return super_tokens_section(sources.trained, sources.view)


def _guarded(name: str, title: str, make: Callable[[], ReportSection | None]) -> ReportSection | None:
    """Return a section; where it cannot be made, one that says so: the rest of the page is worth having."""
    try:
        return make()
    except UserError as error:
        lines = ["This part could not be made:", *str(error).splitlines()]
    except Exception as error:
        logger.warning("the report's section %s could not be made: %s: %s", title, type(error).__name__, error)
        lines = [f"This part could not be made: {type(error).__name__}: {error}"]
    return ReportSection(name, title, [TextPart(lines, kind="warning")])


def _of_task(run: Run, sources: Sources, say: Callable[[str], None]) -> tuple[list[ReportSection], list[str]]:
    """Return the task's sections, and lines on why they are not there."""
    missing = next(
        (part for part in (sources.trained, sources.predictions, sources.evaluation) if isinstance(part, UserError)), None
    )
    make = tasks.registry.get(run.recipe.task).report
    if missing is not None:
        return [], ["There are no predictions to look at:", *str(missing).splitlines()]
    if make is None or sources.predictions is None:
        return [], []
    assert not isinstance(sources.trained, UserError)
    assert not isinstance(sources.evaluation, UserError)
    assert not isinstance(sources.predictions, UserError)
    say("metrics, intervals and images")
    given = ReportInput(run.recipe, sources.evaluation, sources.predictions, sources.trained, sources.device)
    found: list[ReportSection] = []
    try:
        for section in make(given):  # one by one: if a later one fails, the earlier ones stay
            found.append(section)
    except UserError as error:
        return found, ["A part of the evaluation could not be shown:", *str(error).splitlines()]
    except Exception as error:
        logger.warning("a part of the report could not be made: %s: %s", type(error).__name__, error)
        return found, [f"A part of the evaluation could not be shown: {type(error).__name__}: {error}"]
    return found, []
