"""What goes wrong around a run, said in words: memory, dead workers, lost processes, numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from stvit_cli.data.loader import explain_dead_worker
from stvit_cli.engine.batching import smaller_sizes
from stvit_cli.engine.session import Session
from stvit_cli.engine.step import NonFiniteError
from stvit_cli.errors import UserError
from stvit_cli.utils.files import replace_file

# What gloo and NCCL say, in RuntimeErrors without a type of their own, when the process at the other end is gone.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "Socket",
)
OUT_OF_HOST_MEMORY = ("can't allocate memory", "not enough memory")


@contextmanager
def explained(session: Session, run_dir: Path | None) -> Iterator[None]:
    """Turn the failures a person can do something about into a UserError; other ones pass through."""
    go_on = f"The last checkpoint is intact: stvit train --resume {run_dir}" if run_dir is not None else ""
    try:
        yield
    except NonFiniteError as error:
        if not session.world.is_main:
            raise SystemExit(2) from error
        raise UserError(_non_finite(error, session, run_dir)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(_out_of_memory(session, go_on)) from error
    except RuntimeError as error:
        message = str(error)
        if any(sign in message for sign in OUT_OF_HOST_MEMORY):
            raise UserError(_out_of_memory(session, go_on)) from error
        dead_worker = explain_dead_worker(error)
        if dead_worker is not None:
            raise dead_worker from error
        if session.world.size > 1 and (isinstance(error, dist.DistError) or any(sign in message for sign in LOST_PEER)):
            raise UserError(
                f"Process {session.world.rank} has lost the others: one of them ended, or the network failed.\n"
                f"Look above for the message of the process that ended first.\n{go_on}"
            ) from error
        raise


def _out_of_memory(session: Session, go_on: str) -> str:
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
    where = f"GPU {device.index}" if device.type == "cuda" else "the machine"
    lines = [f"Out of memory on {where} with {plan.micro_batch_size} pictures per device.", f"Try {', or '.join(advice)}."]
    return "\n".join([*lines, go_on])


def _non_finite(error: NonFiniteError, session: Session, run_dir: Path | None) -> str:
    """Say which files were in the batch: a few here, all of them in a file beside the metrics."""
    shown = ", ".join(error.names[:4])
    if len(error.names) > 4 and run_dir is not None:
        path = run_dir / f"non_finite_step_{error.step}.txt"
        try:
            replace_file(path, "".join(f"{name}\n" for name in error.names).encode())
            shown += f" and {len(error.names) - 4} more (all of them in {path})"
        except OSError:
            shown += f" and {len(error.names) - 4} more"
    kept = "" if run_dir is None else f" The checkpoints before it are in {run_dir / 'checkpoints'}."
    wider = " train.precision=bf16," if session.recipe.train.precision == "fp16" else ""
    return (
        f"The {error.what} is not finite at step {error.step}; stopped before the update.{kept}\n"
        f"In the batch: {shown}.\n"
        f"Where the pictures are sound, try a lower optim.lr,{wider} or optim.clip_grad_norm=1."
    )
