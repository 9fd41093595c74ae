"""The toolkit of the Super Token Vision Transformer (STViT, CVPR 2023, arXiv 2211.11167)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stvit_cli.utils.after_import import call_after_import

if TYPE_CHECKING:
    from stvit_cli.api import (
        ConversionResult,
        DataReport,
        DataSummary,
        DryRunResult,
        EvaluationResult,
        ExportResult,
        ModelCatalog,
        PredictionFiles,
        PushResult,
        ReproductionResult,
        TrainedModel,
        TrainingResult,
        ablate,
        collect_env,
        compare,
        data_check,
        data_convert,
        data_shard,
        data_show,
        describe_models,
        dry_run,
        embed,
        evaluate,
        experiments,
        load,
        predict,
        push,
        report,
        reproduce,
        resume,
        run_predictions,
        train,
    )
    from stvit_cli.api.superpixel_evaluation import superpixels
    from stvit_cli.engine.callbacks import Callback, TrainingView
    from stvit_cli.errors import Interrupted, UserError
    from stvit_cli.models.kernels import use_kernels
    from stvit_cli.models.optimize.inference import for_inference
    from stvit_cli.models.registry import create_model, list_models
    from stvit_cli.models.weights import LoadReport, WeightsInfo, load_weights, save_weights
    from stvit_cli.tasks.detection.detector import create_detector
    from stvit_cli.tasks.loading import open_trained
    from stvit_cli.tasks.segmentation.upernet import create_segmenter
    from stvit_cli.utils.packaged_weights import PackagedWeights, list_weights

__version__ = "0.2.0"
__all__ = [
    "Callback",
    "ConversionResult",
    "DataReport",
    "DataSummary",
    "DryRunResult",
    "EvaluationResult",
    "ExportResult",
    "Interrupted",
    "LoadReport",
    "ModelCatalog",
    "PackagedWeights",
    "PredictionFiles",
    "PushResult",
    "ReproductionResult",
    "TrainedModel",
    "TrainingResult",
    "TrainingView",
    "UserError",
    "WeightsInfo",
    "__version__",
    "ablate",
    "collect_env",
    "compare",
    "create_detector",
    "create_model",
    "create_segmenter",
    "data_check",
    "data_convert",
    "data_shard",
    "data_show",
    "describe_models",
    "dry_run",
    "embed",
    "evaluate",
    "experiments",
    "for_inference",
    "list_models",
    "list_weights",
    "load",
    "load_weights",
    "open_trained",
    "predict",
    "push",
    "report",
    "reproduce",
    "resume",
    "run_predictions",
    "save_weights",
    "superpixels",
    "train",
    "use_kernels",
]

_MODULES = {
    "Callback": "engine.callbacks",
    "ConversionResult": "api",
    "DataReport": "api",
    "DataSummary": "api",
    "DryRunResult": "api",
    "EvaluationResult": "api",
    "ExportResult": "api",
    "Interrupted": "errors",
    "LoadReport": "models.weights",
    "ModelCatalog": "api",
    "PackagedWeights": "utils.packaged_weights",
    "PredictionFiles": "api",
    "PushResult": "api",
    "ReproductionResult": "api",
    "TrainedModel": "api",
    "TrainingResult": "api",
    "TrainingView": "engine.callbacks",
    "UserError": "errors",
    "WeightsInfo": "models.weights",
    "ablate": "api",
    "collect_env": "api",
    "compare": "api",
    "create_detector": "tasks.detection.detector",
    "create_model": "models.registry",
    "create_segmenter": "tasks.segmentation.upernet",
    "data_check": "api",
    "data_convert": "api",
    "data_shard": "api",
    "data_show": "api",
    "describe_models": "api",
    "dry_run": "api",
    "embed": "api",
    "evaluate": "api",
    "experiments": "api",
    "for_inference": "models.optimize.inference",
    "list_models": "models.registry",
    "list_weights": "utils.packaged_weights",
    "load": "api",
    "load_weights": "models.weights",
    "open_trained": "tasks.loading",
    "predict": "api",
    "push": "api",
    "report": "api",
    "reproduce": "api",
    "resume": "api",
    "run_predictions": "api",
    "save_weights": "models.weights",
    "superpixels": "api",
    "train": "api",
    "use_kernels": "models.kernels",
}


# stvit_small and the others are in timm's registry whenever timm is imported, which takes seconds and is not done here.
call_after_import("timm.models", lambda: importlib.import_module("stvit_cli.models.timm_registry"))


def __getattr__(name: str) -> Any:
    # Lazily, so that `stvit --help` does not wait for torch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"stvit_cli.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'stvit_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
