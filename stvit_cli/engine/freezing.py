"""Freezing: the backbone in a linear probe, its parts before they are unfrozen, batch norms and drop path in fine-tuning."""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn

from stvit_cli.errors import UserError
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
    elif section.unfreeze_epochs is not None:
        for module in task.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()


class GradualUnfreezing:
    """The backbone is frozen at first, and its parts are unfrozen one by one, from the head down (ULMFiT, arXiv 1801.06146).

    What is frozen after a step follows from the step alone. A frozen part takes no step in the optimizer, and its batch norms
    keep their statistics.

    Args:
        task: its model's parts are those that timm's ``group_matcher`` names: the layers before the head, the stages from the
            last to the first, the stem.
        every: the number of steps after which one more part is unfrozen.

    Raises:
        UserError: the model does not name its parts.
    """

    def __init__(self, task: Task, every: int) -> None:
        self.task, self.every = task, every
        self.parts = _parts_of_backbone(task)

    def num_frozen(self, step: int) -> int:
        """Return how many parts are frozen in the step after ``step`` steps."""
        return max(0, len(self.parts) - step // self.every)

    def apply(self, step: int) -> bool:
        """Freeze and unfreeze the parts for the step after ``step`` steps. Return whether anything changed."""
        num_frozen = self.num_frozen(step)
        is_changed = False
        for index, part in enumerate(self.parts):
            is_trained = index < len(self.parts) - num_frozen
            for parameter in part:
                is_changed |= parameter.requires_grad != is_trained
                parameter.requires_grad_(is_trained)
        return is_changed

    def note(self, steps_per_epoch: int, num_steps: int) -> str:
        """Return the line that a run shows at its start."""
        epochs, total = self.every // steps_per_epoch, len(self.parts) * self.every // steps_per_epoch
        beyond = f", which the run's {num_steps / steps_per_epoch:g} do not reach" if total * steps_per_epoch >= num_steps else ""
        return (
            f"The head trains alone at first; one more of the backbone's {len(self.parts)} parts from epoch {epochs} on, "
            f"every {epochs} epoch{'s' * (epochs > 1)}; all of it from epoch {total}{beyond}."
        )


def _parts_of_backbone(task: Task) -> list[list[nn.Parameter]]:
    """Return the parameters of the parts, from the head down, without those of the heads."""
    in_heads = {parameter for head in task.heads() for parameter in head.parameters()}
    for module in task.model.modules():
        if not callable(getattr(module, "group_matcher", None)):
            continue
        own = dict(module.named_parameters())
        groups = group_parameters(module, module.group_matcher(coarse=True))  # type: ignore[operator]
        parts = [[own[name] for name in groups[key] if own[name] not in in_heads] for key in sorted(groups, reverse=True)]
        return [trained for part in parts if (trained := [parameter for parameter in part if parameter.requires_grad])]
    raise UserError(
        f"finetune.unfreeze_epochs: {type(task.model).__name__} does not name its stages (timm's group_matcher).\n"
        "Use finetune.freeze_backbone=true, or a lower optim.lr with all layers."
    )
