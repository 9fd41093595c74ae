"""The experiments behind the published tables: `experiments` lists them, `reproduce` writes the tables of one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvit_cli.errors import UserError

AnyPath = str | os.PathLike[str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReproductionResult:
    """The results of an experiment.

    Attributes:
        results: the content of the JSON file: ``settings``, ``differences`` and ``runs`` hold the figures by key.
        json_file: where it was written.
        markdown_file: the same as tables.
        notes: on runs that are not finished, or that nearly fit a setting.
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

    Runs are finished where ``runs/reproduce-NAME`` says so.
    """
    from stvit_cli.analysis.reproduce import experiments as definitions
    from stvit_cli.utils import strict_json

    rows = []
    for name in definitions.names():
        own = definitions.load(name)
        found = strict_json.read_object(output_folder(name) / f"{name}.json").get("runs", {})
        rows.append(
            {
                "name": name,
                "title": own.title,
                "question": own.question,
                "num_runs": own.num_runs,
                "hours": round(own.hours, 1),
                "finished": len(found),
            }
        )
    return rows


def reproduce(name: str, *, collect: AnyPath | None = None, output: AnyPath | None = None) -> ReproductionResult:
    """Write the results of an experiment, from runs that are there.

    Args:
        name: of the experiment, see `experiments`.
        collect: a folder with run directories, at any depth. They are recognized by their recipes.
        output: where NAME.json and NAME.md are written, by default into ``collect``. Runs that the file has already are kept.

    Raises:
        UserError: there is no such experiment or folder, no run of it is there, or a file cannot be written.
    """
    from stvit_cli.analysis.reproduce import experiments as definitions
    from stvit_cli.analysis.reproduce import results
    from stvit_cli.analysis.reproduce.finished_run import find_runs

    experiment = definitions.load(name)
    if collect is None:
        raise UserError("Give the folder of finished runs: collect=DIR")
    folder = Path(collect)
    if not folder.is_dir():
        raise UserError(f"--collect {folder}: there is no such folder.")
    target = folder if output is None else Path(output)
    found, notes = results.collect(experiment, find_runs(folder))
    lines = results.known_runs(target / f"{name}.json", experiment) | found
    if not lines:
        hints = notes[:4] or ["It holds no run directory."]
        raise UserError("\n".join([f"{folder} holds no finished run of {name}.", *hints]))
    content = results.build(experiment, lines)
    paths = results.write(content, target)
    return ReproductionResult(content, *paths, tuple(notes))
