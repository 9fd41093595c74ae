"""The models by name, and their weights. Importing this registers them with timm."""

from stvit_cli.models import in_timm as _in_timm  # noqa: F401 (for its registration)
from stvit_cli.models.create import create_model, list_models
from stvit_cli.models.weights import load_weights

__all__ = ["create_model", "list_models", "load_weights"]
