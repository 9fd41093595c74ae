"""The models by name."""

from __future__ import annotations

from torch import nn

from stvit_cli.errors import UserError
from stvit_cli.models.isotropic import VARIANTS as ISOTROPIC
from stvit_cli.models.isotropic import Isotropic
from stvit_cli.models.stvit import VARIANTS, GridSizes, STViT
from stvit_cli.utils.text import did_you_mean


def list_models() -> list[str]:
    """Return the names that `create_model` knows."""
    return [*VARIANTS, *ISOTROPIC]


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    *,
    grid_sizes: GridSizes | None = None,
    checkpointing: bool = False,
) -> nn.Module:
    """Build a model by name, freshly initialised. See `STViT` for the arguments.

    Raises:
        UserError: no such model, or a grid for one that has no super tokens.
    """
    if name in VARIANTS:
        return STViT(VARIANTS[name], num_classes, in_chans, drop_path_rate, grid_sizes=grid_sizes, checkpointing=checkpointing)
    if name not in ISOTROPIC:
        known = ", ".join(VARIANTS)
        raise UserError(f"no model '{name}'.{did_you_mean(name, list_models())} Known: {known}, and Table II's rows isotropic-*.")
    if grid_sizes is not None and ISOTROPIC[name].attention == "swin":
        raise UserError(f"grid_sizes: found {list(grid_sizes)} for {name}, which has windows and no super tokens. Leave it out.")
    return Isotropic(ISOTROPIC[name], num_classes, in_chans, drop_path_rate, grid_sizes, checkpointing)
