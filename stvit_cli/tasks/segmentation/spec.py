"""Segmentation's entry in the registry of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stvit_cli.data.images import ImageSource
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import ImagePrediction
from stvit_cli.tasks.data_view import DataView
from stvit_cli.tasks.segmentation import predict
from stvit_cli.tasks.segmentation.task import (
    build_segmentation_evaluation,
    build_segmentation_task,
    create_from,
    create_from_recipe,
)
from stvit_cli.tasks.spec import PredictOptions, TaskSpec, Trained


def _predict(
    trained: Trained, images: Sequence[ImageSource], options: PredictOptions, device: torch.device
) -> Iterator[ImagePrediction]:
    return predict.predict(trained, images, device=device)


def _view_data(recipe: Recipe) -> DataView:
    from stvit_cli.tasks.segmentation.data_view import view_segmentation

    return view_segmentation(recipe)


SPEC = TaskSpec(
    name="segmentation",
    build=build_segmentation_task,
    build_evaluation=build_segmentation_evaluation,
    create_model=create_from,
    predict=_predict,
    create_cost_model=create_from_recipe,
    view_data=_view_data,
    folder_kind="ade20k",
    published_size=(512, 2048),
)
