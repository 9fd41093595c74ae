"""Failures of a run explained: memory, dead workers, lost processes, losses and gradients that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from stvit_cli.engine.batching import smaller_sizes
from stvit_cli.engine.branch import restart_advice, stabilizing_overrides
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.session import Session
from stvit_cli.engine.step import NonFiniteError
from stvit_cli.errors import UserError, WriteError
from stvit_cli.utils.files import replace_file
from stvit_cli.utils.machine_failures import describe, machine_failure
from stvit_cli.utils.text import shell_command
from stvit_cli.utils.troubleshooting import see

# What gloo and NCCL say, in RuntimeErrors without a type of their own, when the process at the other end is gone.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "Socket",
)
LESS_MEMORY = "a lower train.batch_size_per_device, model.checkpointing=true and data.num_workers=0"


@contextmanager
def explained(session: Session, run_dir: Path | None) -> Iterator[None]:
    """Turn failures that the user can fix into a UserError; others pass through."""
    try:
        yield
    except WriteError as error:
        raise UserError("\n".join(filter(None, [str(error), resume_advice(run_dir)]))) from error
    except NonFiniteError as error:
        if not session.world.is_main:
            raise SystemExit(2) from error
        raise UserError(_non_finite(error, session, run_dir)) from error
    except Exception as error:
        if isinstance(error, UserError):
            raise
        failure = machine_failure(error)
        if failure is not None:
            said = _out_of_memory(session) if failure.is_memory else describe(failure, LESS_MEMORY)
            raise UserError("\n".join(filter(None, [said, resume_advice(run_dir)]))) from error
        is_peer = isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST_PEER)
        if session.world.size > 1 and isinstance(error, RuntimeError) and is_peer:
            raise UserError(
                f"Process {session.world.rank} has lost the others: one of them ended, or the network failed.\n"
                f"Look above for the message of the process that ended first.\n{resume_advice(run_dir)}".rstrip()
            ) from error
        raise


@contextmanager
def evaluation_explained(session: Session, run_dir: Path | None) -> Iterator[None]:
    """Name ``eval.batch_size`` where the memory does not suffice for an evaluation: a smaller micro-batch would not help."""
    try:
        yield
    except Exception as error:
        failure = machine_failure(error)
        if failure is None or not failure.is_memory:
            raise
        size = session.recipe.eval.batch_size
        less = f"Try eval.batch_size={size // 2}." if size > 1 else "Free memory, or use smaller images."
        first = f"Out of memory on {_where(session)} in an evaluation, with {size} image{'s' * (size > 1)} at once."
        raise UserError("\n".join(filter(None, [first, less, resume_advice(run_dir), see("out-of-memory")]))) from error


def resume_advice(run_dir: Path | None) -> str:
    """Return how to resume the run in a directory, or an empty string if it cannot be resumed yet."""
    if run_dir is None or not RunDir(run_dir).recipe.is_file():
        return ""
    return f"The last checkpoint is intact: {shell_command('stvit', 'train', '--resume', run_dir)}"


def _out_of_memory(session: Session) -> str:
    plan, device = session.plan, session.world.device
    sizes = smaller_sizes(plan, session.task.batch_multiple)
    advice = []
    if sizes:
        same = f"the global batch stays {plan.global_batch_size}"
        advice.append(
            f"train.batch_size_per_device={next((s for s in sizes if s <= plan.micro_batch_size // 2), sizes[0])} ({same})"
        )
    if not session.recipe.model.checkpointing:
        advice.append("model.checkpointing=true")
    if session.recipe.train.precision == "fp32" and device.type == "cuda":
        advice.append("train.precision=bf16")
    first = f"Out of memory on {_where(session)} with {plan.micro_batch_size} images per device."
    less = f"Try {', or '.join(advice)}." if advice else "Free memory, or raise the limit of this process."
    return "\n".join([first, less, see("out-of-memory")])


def _where(session: Session) -> str:
    device = session.world.device
    return f"GPU {device.index}" if device.type == "cuda" else "the machine"


def _non_finite(error: NonFiniteError, session: Session, run_dir: Path | None) -> str:
    """Name some files of the batch in the message, and list all of them in a file beside the metrics."""
    shown = ", ".join(error.names[:4])
    if len(error.names) > 4 and run_dir is not None:
        path = run_dir / f"non_finite_step_{error.step}.txt"
        try:
            replace_file(path, "".join(f"{name}\n" for name in error.names).encode())
            shown += f" and {len(error.names) - 4} more (all of them in {path})"
        except OSError:
            shown += f" and {len(error.names) - 4} more"
    lines = [f"The {error.what} is not finite at step {error.step}; stopped before the update.", f"In the batch: {shown}."]
    advice = restart_advice(session.recipe, run_dir, error.step)
    advice = advice or [f"Where the images are sound, try {' '.join(stabilizing_overrides(session.recipe))}"]
    return "\n".join([*lines, *advice, see("nan-loss")])
