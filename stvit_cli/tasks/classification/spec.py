"""Classification's entry in the registry of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from stvit_cli.data.images import ImageSource
from stvit_cli.models import create_model
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import ImagePrediction
from stvit_cli.tasks.classification import predict
from stvit_cli.tasks.classification.task import build_classification_evaluation, build_classification_task
from stvit_cli.tasks.spec import PredictOptions, TaskSpec, Trained


def _create_model(info: WeightsInfo) -> nn.Module:
    return create_model(info.model, info.num_classes, info.in_chans, grid_sizes=info.grid_sizes)


def _create_cost_model(recipe: Recipe) -> nn.Module:
    return create_model(recipe.model.name, in_chans=recipe.model.in_chans, grid_sizes=recipe.model.grid_sizes)


def _predict(
    trained: Trained, images: Sequence[ImageSource], options: PredictOptions, device: torch.device
) -> Iterator[ImagePrediction]:
    return predict.predict(
        trained, images, top=options.top, device=device, batch_size=options.batch_size, num_workers=options.num_workers
    )


SPEC = TaskSpec(
    name="classification",
    build=build_classification_task,
    build_evaluation=build_classification_evaluation,
    create_model=_create_model,
    predict=_predict,
    create_cost_model=_create_cost_model,
    folder_kind="imagefolder",
    exports_onnx=True,
)
