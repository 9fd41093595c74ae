"""What a run says when it starts: its model, batch and steps, and notes on its data and settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stvit_cli.engine.damage import ADAMW
from stvit_cli.engine.optim import describe_optimizer
from stvit_cli.engine.session import Session
from stvit_cli.engine.slow_spots import unused_gpus
from stvit_cli.recipe import Recipe
from stvit_cli.recipe.renamed_keys import DEPRECATED
from stvit_cli.utils.cpus import num_threads, threads_note


def summary(session: Session, run_dir: Path, start_notes: Sequence[str]) -> list[str]:
    """Return the lines that a run starts with.

    Args:
        session: the run.
        run_dir: its directory.
        start_notes: what `RunStart` has to say.
    """
    recipe, timeline = session.recipe, session.timeline
    with_kernels = " with custom kernels" if session.preparation.kernels_in_training else ""
    threads = f", {num_threads()} thread{'s' * (num_threads() != 1)}" if session.world.device.type == "cpu" else ""
    trained = sum(p.numel() for p in session.model.parameters() if p.requires_grad)
    lines = [
        f"{recipe.name}: {trained / 1e6:.2f} M trained parameters on {session.world.device}{with_kernels}{threads}, "
        f"batch {session.plan}, "
        f"{timeline.num_steps} steps ({timeline.steps_per_epoch} an epoch), into {run_dir}",
        *session.task.notes(),
        *unused_gpus(session.world),
    ]
    lines += [note] if (note := threads_note()) is not None else []
    if recipe.optim.name != ADAMW:
        lines.append(describe_optimizer(recipe.optim.name, session.optimizer))
    lines += start_notes
    if recipe.train.kernels is True and not with_kernels:
        precision = recipe.train.precision
        lines.append(
            f"Note: on a CPU the kernels are for fp32 and bf16: with train.precision={precision} only evaluations use them."
        )
    lines += session.preparation.notes
    if session.unfreezing is not None:
        lines.append(session.unfreezing.note(timeline.steps_per_epoch, timeline.num_steps))
    old = [key for key in DEPRECATED if _is_set(recipe, key)]
    return [*lines, *(f"Warning: {key} is deprecated; use {DEPRECATED[key]}." for key in old)]


def _is_set(recipe: Recipe, key: str) -> bool:
    """Whether a dotted key has another value than its default."""
    section, leaf = key.split(".")
    inside = getattr(recipe, section)
    return bool(getattr(inside, leaf) != type(inside).model_fields[leaf].default)
