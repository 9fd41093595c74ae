"""Runs side by side: each in a process of its own, on a GPU of its own or on an equal part of the CPU's threads."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stvit_cli.analysis.ablation.runs import Run
from stvit_cli.engine.signals import stop_request
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.utils.cpus import usable_cpus
from stvit_cli.utils.files import writing

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.3  # between checks for processes that ended
STARTED = "Run %d of %d: %s on %s, log in %s"
LOG_LINES = 4  # at the end of a failed process's log, quoted in the message


@dataclass(frozen=True)
class Slot:
    """Where a process runs: a GPU, or a part of the CPU's threads.

    Attributes:
        description: for log messages.
        environment: variables to set for the process.
    """

    description: str
    environment: dict[str, str]


def run_in_processes(runs: Sequence[Run], num_parallel: int, ended: Callable[[Run, str | None], None]) -> None:
    """Run ``stvit train`` for every run, ``num_parallel`` at a time.

    Args:
        runs: in the order in which they start.
        num_parallel: number of processes.
        ended: called with each run that ended and what it says of its failure; None: it ended well.

    Raises:
        Interrupted: a signal came; it was forwarded, and all runs have saved their state.
        UserError: there are fewer GPUs than processes.
    """
    pending, busy = list(runs), list[tuple[Run, Slot, subprocess.Popen[bytes]]]()
    free = slots(num_parallel, on_cpu=bool(runs) and runs[0].recipe.train.device == "cpu")
    with stop_request() as stop:
        try:
            while pending or busy:
                while pending and free:
                    run, slot = pending.pop(0), free.pop(0)
                    busy.append((run, slot, _start(run, slot)))
                    number = len(runs) - len(pending)
                    logger.info(STARTED, number, len(runs), run.path.name, slot.description, run.log_file)
                time.sleep(POLL_SECONDS)
                for run, slot, process in [entry for entry in busy if entry[2].poll() is not None]:
                    busy.remove((run, slot, process))
                    free.append(slot)
                    message = _message(run, process.returncode)
                    if stop.number == 0:
                        ended(run, message)
                if stop.number:
                    raise Interrupted(stop.number)
        finally:
            for _, _, process in busy:
                process.terminate()
            for _, _, process in busy:
                process.wait()


def slots(num_parallel: int, *, on_cpu: bool = False) -> list[Slot]:
    """Assign a GPU to each process, or an equal part of the CPU's threads, at most as many as the user has set.

    Args:
        num_parallel: number of processes.
        on_cpu: the runs train on the CPU, although there may be a GPU.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    num_gpus = 0 if on_cpu else torch.cuda.device_count()
    if not num_gpus:
        given = os.environ.get("OMP_NUM_THREADS", "")
        threads = max(1, usable_cpus() // num_parallel)
        threads = min(threads, int(given)) if given.isdecimal() and int(given) else threads
        return [Slot(f"{threads} thread{'s' * (threads > 1)} of the CPU", {"OMP_NUM_THREADS": str(threads)})] * num_parallel
    if num_parallel > num_gpus:
        raise UserError(f"{num_parallel} parallel runs: found {num_gpus} GPUs, but each run needs its own.")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    return [Slot(f"GPU {name}", {"CUDA_VISIBLE_DEVICES": name}) for name in names[:num_parallel]]


def _start(run: Run, slot: Slot) -> subprocess.Popen[bytes]:
    run.write_recipe()
    if run.has_started:
        arguments = ["--resume", str(run.path), *run.overrides]
    else:
        arguments = ["--recipe", str(run.recipe_file), "--output", str(run.path)]
    with writing(run.log_file), run.log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "stvit_cli", "train", *arguments],
            env=os.environ | slot.environment | {"STVIT_ABLATION": str(run.path.parent)},  # see engine.signals
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that Ctrl-C reaches it once, forwarded by this process
        )


def _message(run: Run, code: int) -> str | None:
    """Return what a process says of its failure; None where it ended well. Raises Interrupted where a signal ended it."""
    if code == 0:
        return None
    if code in (130, 143):
        logger.info("%s was stopped by a signal.", run.path.name)
        raise Interrupted(signal.SIGINT if code == 130 else signal.SIGTERM)
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}; its log is {run.log_file}"
    lines = run.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [number for number, line in enumerate(lines) if line.startswith("stvit: ")]
    shown = lines[said[-1] :] if said and code == 2 else lines[-LOG_LINES:]
    return "\n".join([shown[0].removeprefix("stvit: "), *shown[1:LOG_LINES]]) if shown else f"it ended with code {code}"
