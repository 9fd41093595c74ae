"""The models by name, and their weights. `stvit_cli` registers them with timm."""

from stvit_cli.models.registry import create_model, list_models
from stvit_cli.models.weights.file import load_weights

__all__ = ["create_model", "list_models", "load_weights"]
