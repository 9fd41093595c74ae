"""The toolkit of the Super Token Vision Transformer (STViT, CVPR 2023, arXiv 2211.11167)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["__version__", "create_detector", "create_model", "create_segmenter", "list_models", "load_weights", "open_trained"]

if TYPE_CHECKING:
    from stvit_cli.models import create_model, list_models, load_weights
    from stvit_cli.tasks.detection.detector import create_detector
    from stvit_cli.tasks.loading import open_trained
    from stvit_cli.tasks.segmentation.upernet import create_segmenter

_HOMES = {
    "create_detector": "tasks.detection.detector",
    "create_segmenter": "tasks.segmentation.upernet",
    "open_trained": "tasks.loading",
}


def __getattr__(name: str) -> Any:
    # Lazily, so that `stvit --help` does not wait for torch.
    if name in __all__:
        return getattr(importlib.import_module(f"stvit_cli.{_HOMES.get(name, 'models')}"), name)
    raise AttributeError(f"module 'stvit_cli' has no attribute '{name}'")
