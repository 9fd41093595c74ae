"""Freezing: the backbone in a linear probe, batch norms and drop path in the authors' fine-tuning."""

from __future__ import annotations

from stvit_cli.recipe import FinetuneSection
from stvit_cli.tasks.base import Task, freeze_batch_norms, freeze_drop_path


def freeze(task: Task, section: FinetuneSection) -> None:
    """Freeze the backbone if the recipe says so. Call before the optimizer is built."""
    if not section.freeze_backbone:
        return
    task.model.requires_grad_(False)
    for head in task.heads():
        head.requires_grad_(True)


def set_training_mode(task: Task, section: FinetuneSection) -> None:
    """Put the model in training mode, except frozen modules, which keep their statistics and drop nothing."""
    task.model.train()
    if section.freeze_norm:
        freeze_batch_norms(task.model)
        freeze_drop_path(task.model)
    if section.freeze_backbone:
        in_heads = {module for head in task.heads() for module in head.modules()}
        for module in task.model.modules():
            # What contains a head is neither backbone nor head; a detector, for one, gives losses in training mode alone.
            if not in_heads.intersection(module.modules()):
                module.training = False
