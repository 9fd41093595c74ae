"""Train, evaluate and use models from Python: the functions behind the command line.

`stvit_cli` exports all of them. Importing this package does not import torch. Progress goes to standard error, warnings to the
logger ``stvit_cli``.
"""

from stvit_cli.api.ablation import ablate
from stvit_cli.api.catalog import ModelCatalog, describe_models
from stvit_cli.api.comparison import compare
from stvit_cli.api.conversion import ConversionResult, ConvertedFile, data_convert
from stvit_cli.api.data import DataReport, DataSummary, data_check, data_show
from stvit_cli.api.environment import collect_env
from stvit_cli.api.overrides import Overrides
from stvit_cli.api.prediction import PredictionFiles, embed, predict
from stvit_cli.api.publishing import PushResult, push
from stvit_cli.api.reproducing import ReproductionResult, experiments, reproduce
from stvit_cli.api.results import DryRunResult, EvaluationResult, ExportResult, TrainingResult
from stvit_cli.api.run_report import report
from stvit_cli.api.sharding import ShardingResult, data_shard
from stvit_cli.api.superpixel_evaluation import superpixels
from stvit_cli.api.trained_model import TrainedModel, evaluate, load, run_predictions
from stvit_cli.api.training import dry_run, resume, train

__all__ = [
    "ConversionResult",
    "ConvertedFile",
    "DataReport",
    "DataSummary",
    "DryRunResult",
    "EvaluationResult",
    "ExportResult",
    "ModelCatalog",
    "Overrides",
    "PredictionFiles",
    "PushResult",
    "ReproductionResult",
    "ShardingResult",
    "TrainedModel",
    "TrainingResult",
    "ablate",
    "collect_env",
    "compare",
    "data_check",
    "data_convert",
    "data_shard",
    "data_show",
    "describe_models",
    "dry_run",
    "embed",
    "evaluate",
    "experiments",
    "load",
    "predict",
    "push",
    "report",
    "reproduce",
    "resume",
    "run_predictions",
    "superpixels",
    "train",
]
