"""The toolkit of the Super Token Vision Transformer (STViT, CVPR 2023, arXiv 2211.11167)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models", "load_weights"]

if TYPE_CHECKING:
    from stvit_cli.models import create_model, list_models, load_weights


def __getattr__(name: str) -> Any:
    # Lazily, so that `stvit --help` does not wait for torch.
    if name in __all__:
        from stvit_cli import models

        return getattr(models, name)
    raise AttributeError(f"module 'stvit_cli' has no attribute '{name}'")
