"""The experiments behind the published tables: `experiments` lists them, `reproduce` runs one or collects its runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvit_cli.errors import Interrupted, UserError
from stvit_cli.utils.cpus import limit_threads
from stvit_cli.utils.environment import require_group
from stvit_cli.utils.text import shell_command

if TYPE_CHECKING:
    from stvit_cli.analysis.reproduce.experiments import Experiment
    from stvit_cli.analysis.reproduce.results import Collected

AnyPath = str | os.PathLike[str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReproductionResult:
    """The results of an experiment.

    Attributes:
        results: the content of the JSON file: ``settings``, ``differences`` and ``runs`` hold the figures by key.
        json_file: where it was written.
        markdown_file: the same as tables.
        notes: on runs that failed, are not finished, or nearly fit a setting.
    """

    results: Mapping[str, Any]
    json_file: Path
    markdown_file: Path
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return dict(self.results)

    def to_markdown(self) -> str:
        """Return the tables as Markdown."""
        from stvit_cli.analysis.reproduce.markdown import as_markdown

        return as_markdown(self.results)


def output_folder(name: str) -> Path:
    """Return the folder of an experiment's runs where none is given."""
    return Path("runs") / f"reproduce-{name}"


def experiments() -> list[dict[str, Any]]:
    """Return what there is to reproduce: ``name``, ``question``, ``num_runs``, about how many ``hours``, and ``finished`` runs.

    Runs are finished where ``runs/reproduce-NAME`` says so; where its seeds disagree in sign, ``num_runs`` has the extra ones.
    Hours are those of one core.
    """
    from stvit_cli.analysis.reproduce import experiments as definitions
    from stvit_cli.analysis.reproduce import results
    from stvit_cli.utils import strict_json

    rows = []
    for name in definitions.names():
        own = definitions.load(name)
        runs = strict_json.read_object(output_folder(name) / f"{name}.json").get("runs")
        found = runs if isinstance(runs, dict) else {}
        num_runs = own.num_runs + len(results.needs_extra_seed(own, found))
        row = {"name": name, "title": own.title, "question": own.question, "num_runs": num_runs}
        rows.append({**row, "hours": round(own.hours, 1), "finished": len(found)})
    return rows


def reproduce(
    name: str,
    *,
    seeds: int | None = None,
    parallel: int = 1,
    data: AnyPath | None = None,
    output: AnyPath | None = None,
    collect: AnyPath | None = None,
) -> ReproductionResult:
    """Train every run of an experiment from nothing, and write its tables; or write them from runs that are there.

    A stopped experiment is resumed by the same call: finished runs are kept, begun ones are resumed. The tables are written again
    after each run.

    Args:
        name: of the experiment, see `experiments`.
        seeds: number of seeds in place of the experiment's.
        parallel: number of runs at a time, each in a process of its own, on a GPU of its own or on an equal part of the CPU.
        data: sets ``data.dir``.
        output: folder of the runs, of NAME.json and NAME.md; by default ``runs/reproduce-NAME``, or ``collect``.
        collect: train nothing: a folder with run directories, at any depth. They are recognized by their recipes; runs that
            NAME.json has already are kept, but for those that are found again.

    Raises:
        UserError: there is no such experiment or folder, the data cannot be used, there is no finished run, or NAME.json is
            damaged.
        Interrupted: a signal asked to stop; the state of every run is saved.

    Example:
        >>> reproduce("fashion-mnist", collect="runs").results["settings"]["stvit-nano"]["mean"]  # doctest: +SKIP
        95.4
    """
    from stvit_cli.analysis.reproduce import experiments as definitions
    from stvit_cli.analysis.reproduce import results
    from stvit_cli.analysis.reproduce.found_run import find_runs

    experiment = definitions.load(name)
    require_group()
    limit_threads()
    if collect is not None:
        if seeds is not None or parallel > 1 or data is not None:
            raise UserError("collect trains nothing: leave seeds, parallel and data out.")
        folder = _existing(collect)
        return _written(experiment, results.collect(experiment, find_runs(folder)), Path(output or folder), folder)
    folder = output_folder(name) if output is None else Path(output)
    failures = _train(experiment, folder, seeds, parallel, data)
    return _written(experiment, results.collect(experiment, find_runs(folder)), folder, folder, failures)


def collect_all(collect: AnyPath, output: AnyPath | None = None) -> list[ReproductionResult]:
    """Write the results of every experiment that has a finished run in a folder; see `reproduce`.

    Raises:
        UserError: there is no such folder, or no finished run of any experiment in it.
    """
    from stvit_cli.analysis.reproduce import experiments as definitions
    from stvit_cli.analysis.reproduce import results
    from stvit_cli.analysis.reproduce.found_run import find_runs

    limit_threads()
    folder = _existing(collect)
    runs = list(find_runs(folder))
    written = []
    for experiment in map(definitions.load, definitions.names()):
        found = results.collect(experiment, runs)
        if found.lines:
            written.append(_written(experiment, found, Path(output or folder), folder))
    if not written:
        raise UserError(f"{folder} holds no finished run of any experiment, of {len(runs)} runs. Name one to see what differs.")
    return written


def _existing(folder: AnyPath) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; expected one with the directories of runs.")
    return path


def _train(experiment: Experiment, folder: Path, seeds: int | None, parallel: int, data: AnyPath | None) -> list[str]:
    """Train what is missing in a folder, and return sentences on runs that failed."""
    from stvit_cli import tasks
    from stvit_cli.analysis.ablation.training import locked, train_runs
    from stvit_cli.analysis.reproduce import results
    from stvit_cli.analysis.reproduce.found_run import find_runs
    from stvit_cli.analysis.reproduce.plan import planned_runs
    from stvit_cli.api.ablation import train_run
    from stvit_cli.utils.files import require_writable_folder

    def found() -> Collected:
        return results.collect(experiment, find_runs(folder) if folder.is_dir() else ())

    def save() -> None:
        if (now := found()).lines:
            lines = known | now.lines
            results.write(results.build(experiment, lines, results.known_parts(earlier, lines)), folder)

    require_writable_folder(folder)
    earlier = results.read_earlier(folder / f"{experiment.name}.json")
    known = results.known_runs(earlier, experiment)
    overrides = [] if data is None else [f"data.dir={data}"]
    options: list[str | Path] = []
    options += ["--seeds", str(seeds)] if seeds is not None else []
    options += ["--parallel", str(parallel)] if parallel > 1 else []
    options += ["--data", Path(data)] if data is not None else []
    options += ["--output", folder] if folder != output_folder(experiment.name) else []
    failures: dict[str, str] = {}
    tried: set[Path] = set()
    extra: set[str] = set()
    while True:
        planned = planned_runs(experiment, folder, found().lines, seeds=seeds, overrides=overrides, extra=extra)
        runs = [run for run in planned if run.path not in tried]
        if not runs:
            return list(failures.values())
        if not tried:
            tasks.build(tasks.resolve(runs[0].recipe)[0])  # what is wrong with the data is found before anything is written
        tried |= {run.path for run in runs}
        try:
            with locked(folder):
                train_runs(runs, train_run, parallel, save)
        except (Interrupted, KeyboardInterrupt):
            logger.info("Resume with the same command: %s", shell_command("stvit", "reproduce", experiment.name, *options))
            raise
        for run in runs:
            if (failure := run.failure) is not None:
                failures[str(run.path)] = f"{run.path} {failure.kind}: {failure.message.splitlines()[0]}"
        extra = results.needs_extra_seed(experiment, found().lines)


def _written(
    experiment: Experiment, found: Collected, target: Path, folder: Path, failures: Iterable[str] = ()
) -> ReproductionResult:
    """Measure what is measured on runs, write the results, and return them."""
    from stvit_cli.analysis.reproduce import results

    earlier = results.read_earlier(target / f"{experiment.name}.json")
    known = results.known_runs(earlier, experiment)
    lines = known | found.lines
    notes = [*failures, *found.notes, *results.replaced(known, found, experiment.metrics)]
    if not lines:
        hints = notes[:4] or ["It holds no run directory."]
        raise UserError("\n".join([f"{folder} holds no finished run of {experiment.name}.", *hints]))
    parts = results.known_parts(earlier, lines)
    if experiment.paired or experiment.speed is not None:
        from stvit_cli.analysis.reproduce.measurements import paired_tests, speeds

        pairs = parts.get("pairs", {}) | paired_tests(experiment, found.paths)
        speed = parts.get("speed", {}) or speeds(experiment, {line["setting"] for line in lines.values()})
        parts |= {name: part for name, part in (("pairs", pairs), ("speed", speed)) if part}
    if experiment.superpixels and parts.get("superpixel_runs") != list(found.paths):
        from stvit_cli.analysis.reproduce.superpixel_lines import superpixel_parts

        parts |= superpixel_parts(experiment, found.paths, target)
    content = results.build(experiment, lines, parts)
    return ReproductionResult(content, *results.write(content, target), tuple(notes))
