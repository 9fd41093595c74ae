"""Recipes: the schema of every setting, reading and writing, validation and its messages. Imports no torch."""

from stvit_cli.recipe.dense_tasks import DetectionSection, SegmentationSection, ShapesSection
from stvit_cli.recipe.field_types import Section
from stvit_cli.recipe.schema import (
    FREE_ON_RESUME,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PATH_KEYS,
    AugmentSection,
    CheckpointSection,
    DataSection,
    EvalSection,
    FinetuneSection,
    ModelSection,
    OptimSection,
    Recipe,
    ScheduleSection,
    TrainSection,
)

__all__ = [
    "FREE_ON_RESUME",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PATH_KEYS",
    "AugmentSection",
    "CheckpointSection",
    "DataSection",
    "DetectionSection",
    "EvalSection",
    "FinetuneSection",
    "ModelSection",
    "OptimSection",
    "Recipe",
    "ScheduleSection",
    "Section",
    "SegmentationSection",
    "ShapesSection",
    "TrainSection",
]
