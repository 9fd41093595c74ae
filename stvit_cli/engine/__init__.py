"""Training, evaluation and resumption of any task. Knows no task."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["dry_run", "evaluate", "evaluate_keeping", "fit", "fit_to_data"]

if TYPE_CHECKING:
    from stvit_cli.engine.dry_running import dry_run
    from stvit_cli.engine.evaluation import evaluate, evaluate_keeping
    from stvit_cli.engine.small_data import fit_to_data
    from stvit_cli.engine.trainer import fit

_HOMES = {
    "dry_run": "dry_running",
    "evaluate": "evaluation",
    "evaluate_keeping": "evaluation",
    "fit": "trainer",
    "fit_to_data": "small_data",
}


def __getattr__(name: str) -> Any:
    # Lazily, so that the command line can look at a run directory without waiting for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'stvit_cli.engine' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
