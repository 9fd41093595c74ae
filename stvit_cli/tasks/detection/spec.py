"""Detection's entry in the registry of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from stvit_cli.data.images import ImageSource
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import ImagePrediction, Task
from stvit_cli.tasks.bulk import BulkPredictor, Kind, RowsPredictor
from stvit_cli.tasks.data_view import DataView
from stvit_cli.tasks.detection import predict
from stvit_cli.tasks.detection.cost import CountedDetector
from stvit_cli.tasks.detection.data import resolve_head
from stvit_cli.tasks.detection.image_scores import image_scores
from stvit_cli.tasks.detection.predictions import read_detection_predictions
from stvit_cli.tasks.detection.task import build_detection_evaluation, build_detection_task, create_from, create_from_recipe
from stvit_cli.tasks.exported import ExportedModel, ExportForm, Run
from stvit_cli.tasks.report_parts import ReportSection, ShownImage
from stvit_cli.tasks.spec import EvalDrawing, PredictOptions, ReportInput, TaskSpec, Trained

COCO_CLASSES = 80


def _create_cost_model(recipe: Recipe) -> CountedDetector:
    return CountedDetector(create_from_recipe(recipe, COCO_CLASSES))


def _predict(
    trained: Trained, images: Sequence[ImageSource], options: PredictOptions, device: torch.device
) -> Iterator[ImagePrediction]:
    return predict.predict(trained, images, score_threshold=options.score_threshold, device=device, precision=options.precision)


_COLUMNS: dict[str, Kind] = {
    "class": "text",
    "class_index": "int",
    "score": "score",
    "left": "float",
    "top": "float",
    "right": "float",
    "bottom": "float",
    "mask": "text",
}
"""What of `to_rows` is written of many images."""


def _bulk_predictor(trained: Trained, options: PredictOptions, device: torch.device) -> BulkPredictor:
    return RowsPredictor(_COLUMNS, lambda images: _predict(trained, images, options, device))


def _view_data(recipe: Recipe) -> DataView:
    from stvit_cli.tasks.detection.data_view import view_detection

    return view_detection(recipe)


def _report(given: ReportInput) -> Iterator[ReportSection]:
    from stvit_cli.tasks.detection.report import detection_report

    return detection_report(given)


def _sample_sheet(task: Task, num_images: int) -> Sequence[ShownImage]:
    from stvit_cli.tasks.detection.sample_sheet import sample_sheet

    return sample_sheet(task, num_images)


def _draw_evaluation(given: ReportInput) -> Iterator[EvalDrawing]:
    from stvit_cli.tasks.detection.eval_drawings import draw_evaluation

    return draw_evaluation(given)


def _compared_image(given: ReportInput) -> Callable[[int], ShownImage | None]:
    from stvit_cli.tasks.detection.shown_images import compared_image

    return compared_image(given)


def _export_form(trained: Trained) -> ExportForm:
    from stvit_cli.tasks.detection.export import export_form

    return export_form(trained)


def _exported_model(info: WeightsInfo, run: Run) -> ExportedModel:
    from stvit_cli.tasks.detection.export import RunDetector

    return RunDetector(info, run)


SPEC = TaskSpec(
    name="detection",
    build=build_detection_task,
    build_evaluation=build_detection_evaluation,
    create_model=create_from,
    predict=_predict,
    bulk_predictor=_bulk_predictor,
    create_cost_model=_create_cost_model,
    view_data=_view_data,
    folder_kind="coco",
    read_predictions=read_detection_predictions,
    image_scores=image_scores,
    resolve=resolve_head,
    published_size=(800, 1280),
    eval_batch_size=1,  # in a larger batch the padding of an image depends on the other images
    report=_report,
    sample_sheet=_sample_sheet,
    samples_note="After augmentation, with the truth that it learns; the model resizes them to one of detection.short_sides.",
    draw_evaluation=_draw_evaluation,
    compared_image=_compared_image,
    export_form=_export_form,
    exported_model=_exported_model,
)
