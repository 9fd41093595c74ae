"""Segmentation's entry in the registry of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from stvit_cli.data.class_names import check_names, read_class_names
from stvit_cli.data.images import ImageSource
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import ImagePrediction, Task
from stvit_cli.tasks.bulk import BulkPredictor, Kind, RowsPredictor
from stvit_cli.tasks.data_view import DataView
from stvit_cli.tasks.exported import ExportedModel, ExportForm, Run
from stvit_cli.tasks.report_parts import ReportSection, ShownImage
from stvit_cli.tasks.segmentation import predict
from stvit_cli.tasks.segmentation.image_scores import image_scores
from stvit_cli.tasks.segmentation.predictions import read_segmentation_predictions
from stvit_cli.tasks.segmentation.task import (
    build_segmentation_evaluation,
    build_segmentation_task,
    create_from,
    create_from_recipe,
)
from stvit_cli.tasks.spec import EvalDrawing, PredictOptions, ReportInput, TaskSpec, Trained
from stvit_cli.utils.text import first_few


def _predict(
    trained: Trained, images: Sequence[ImageSource], options: PredictOptions, device: torch.device
) -> Iterator[ImagePrediction]:
    return predict.predict(trained, images, device=device, precision=options.precision)


_COLUMNS: dict[str, Kind] = {"class": "text", "number": "int", "pixels": "int", "share": "score"}
"""What of `to_rows` is written of many images."""


def _bulk_predictor(trained: Trained, options: PredictOptions, device: torch.device) -> BulkPredictor:
    return RowsPredictor(_COLUMNS, lambda images: _predict(trained, images, options, device))


def _view_data(recipe: Recipe) -> DataView:
    from stvit_cli.tasks.segmentation.data_view import view_segmentation

    return view_segmentation(resolve_class_names(recipe)[0])


def resolve_class_names(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Read ``segmentation.class_names`` from ``data.class_names_file``; see `tasks.resolve`.

    Raises:
        UserError: the file cannot be read, or has another number of names than there are ``segmentation.label_values``.
    """
    file = recipe.data.class_names_file
    if file is None:
        return recipe, []
    names, values = read_class_names(file, recipe.data.dir), recipe.segmentation.label_values
    if values is not None:
        check_names(names, len(values), file)
    sections = {
        "data": recipe.data.model_copy(update={"class_names_file": None}),
        "segmentation": recipe.segmentation.model_copy(update={"class_names": names}),
    }
    return recipe.model_copy(update=sections), [f"segmentation.class_names: {len(names)} names from {file}: {first_few(names)}"]


def _report(given: ReportInput) -> Iterator[ReportSection]:
    from stvit_cli.tasks.segmentation.report import segmentation_report

    return segmentation_report(given)


def _sample_sheet(task: Task, num_images: int) -> Sequence[ShownImage]:
    from stvit_cli.tasks.segmentation.sample_sheet import sample_sheet

    return sample_sheet(task, num_images)


def _draw_evaluation(given: ReportInput) -> Iterator[EvalDrawing]:
    from stvit_cli.tasks.segmentation.eval_drawings import draw_evaluation

    return draw_evaluation(given)


def _compared_image(given: ReportInput) -> Callable[[int], ShownImage | None]:
    from stvit_cli.tasks.segmentation.report import compared_image

    return compared_image(given)


def _export_form(trained: Trained) -> ExportForm:
    from stvit_cli.tasks.segmentation.export import export_form

    return export_form(trained)


def _exported_model(info: WeightsInfo, run: Run) -> ExportedModel:
    return ExportedModel(run)


SPEC = TaskSpec(
    name="segmentation",
    build=build_segmentation_task,
    build_evaluation=build_segmentation_evaluation,
    create_model=create_from,
    predict=_predict,
    bulk_predictor=_bulk_predictor,
    create_cost_model=create_from_recipe,
    view_data=_view_data,
    resolve=resolve_class_names,
    folder_kind="ade20k",
    read_predictions=read_segmentation_predictions,
    image_scores=image_scores,
    published_size=(512, 2048),
    report=_report,
    sample_sheet=_sample_sheet,
    draw_evaluation=_draw_evaluation,
    compared_image=_compared_image,
    export_form=_export_form,
    exported_model=_exported_model,
)
