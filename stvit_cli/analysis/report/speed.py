"""How fast a run trained and how much memory it took, from its metrics; and how fast its model predicts, measured now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence, Sized
from typing import cast

import torch

from stvit_cli.analysis.cost.machine import machine
from stvit_cli.analysis.report.run_files import Run
from stvit_cli.analysis.report.summary import seconds_spent
from stvit_cli.engine.progress import duration
from stvit_cli.errors import UserError
from stvit_cli.tasks.base import Evaluation, move
from stvit_cli.tasks.report_parts import Column, Part, ReportSection, TablePart, TextPart
from stvit_cli.tasks.spec import Trained

SECONDS = 0.5
"""For which each batch size is measured, beside a first pass."""

PATIENCE = 10.0
"""Seconds that a batch may take; a larger one is made smaller."""


def speed_section(run: Run, trained: Trained | None, evaluation: Evaluation | None, device: torch.device) -> ReportSection:
    """Return the section.

    Args:
        run: the run.
        trained: its best weights; None where there are none.
        evaluation: its validation data; None where they cannot be read.
        device: where the model is measured.
    """
    parts: list[Part] = [TablePart([Column("training"), Column("value")], _training(run))]
    if trained is not None and evaluation is not None:
        try:
            parts.append(_inference(trained, evaluation, device, run.recipe.eval.batch_size))
        except UserError as error:
            parts.append(TextPart(["Inference was not measured:", *str(error).splitlines()], kind="warning"))
    return ReportSection("speed", "Speed and memory", parts)


def _training(run: Run) -> list[list[str | float | int | None]]:
    rows: list[list[str | float | int | None]] = []
    rates = [row["images_per_second"] for row in run.train if row.get("images_per_second")]
    if rates:
        rows.append(["throughput, median", f"{statistics.median(rates):.1f} images/s"])
        rows.append(["throughput, lowest and highest", f"{min(rates):.1f} to {max(rates):.1f} images/s"])
    waits = [row["data_wait"] for row in run.train if row.get("data_wait") is not None]
    if waits:
        rows.append(["waiting for data, median", f"{100 * statistics.median(waits):.0f} % of the time"])
    seconds = [row["seconds"] for row in run.evals if row.get("seconds")]
    if seconds:
        rows.append(["an evaluation, median", duration(statistics.median(seconds)) if seconds[0] >= 1 else f"{seconds[0]:.2f} s"])
    spent = seconds_spent(run)
    if spent:
        rows.append(["training and evaluations together, about", duration(spent)])
    memory = [row["peak_memory_bytes"] for row in run.train if row.get("peak_memory_bytes")]
    where = "of the GPU" if str(run.environment.get("device", "cpu")) != "cpu" else "of the main process"
    rows.append([f"peak memory {where}", f"{max(memory) / 2**30:.2f} GiB" if memory else "not recorded by this run"])
    return rows


def _inference(trained: Trained, evaluation: Evaluation, device: torch.device, batch_size: int) -> TablePart:
    """Measure a forward pass with what the evaluation does with its outputs, for one image and for a batch."""
    number = len(cast(Sized, evaluation.val_set))
    samples = _samples(evaluation, min(batch_size, number))
    one = _seconds(trained, evaluation, samples[:1], device)
    sizes = [1]
    largest = min(len(samples), max(1, int(PATIENCE / one)))
    rows: list[list[str | float | int | None]] = [[1, 1e3 * one, 1 / one]]
    if largest > 1:
        sizes.append(largest)
        batch = _seconds(trained, evaluation, samples[:largest], device)
        rows.append([largest, 1e3 * batch, largest / batch])
    name = machine("cpu") if device.type == "cpu" else machine(str(device)) if device.type == "cuda" else str(device)
    note = f"Measured for this report on {name}: the prepared model, and what the evaluation computes of its outputs."
    columns = [Column("images at once", "count"), Column("milliseconds", "number"), Column("images/s", "number")]
    return TablePart(columns, rows, "Inference", note)


def _samples(evaluation: Evaluation, number: int) -> list[object]:
    """Return the first validation samples that can be read, at most ``number``. Raises UserError where none of them can."""
    samples: list[object] = []
    failure: UserError | None = None
    for index in range(number):
        try:
            samples.append(evaluation.val_set[index])
        except UserError as error:
            failure = error
    if not samples:
        raise failure or UserError("there are no validation images.")
    return samples


def _seconds(trained: Trained, evaluation: Evaluation, samples: Sequence[object], device: torch.device) -> float:
    """Return the seconds that a batch takes, the fastest of several passes."""
    model, batch = trained.prepared(device), move(evaluation.collate_eval(list(samples)), device)
    evaluator = evaluation.evaluator()
    times: list[float] = []
    with torch.no_grad():
        while len(times) < 2 or (sum(times[1:]) < SECONDS and len(times) < 50):
            _wait(device)
            since = time.perf_counter()
            evaluator.update(model, batch)
            _wait(device)
            times.append(time.perf_counter() - since)
            if times[0] > PATIENCE:
                break
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
