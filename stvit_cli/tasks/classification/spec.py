"""Classification's entry in the registry of tasks. What trains is imported at its use, as it needs timm: seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from stvit_cli.data.classification import Images
from stvit_cli.data.images import ImageSource
from stvit_cli.models import create_model
from stvit_cli.models.options import options_of
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Evaluation, ImagePrediction, Task
from stvit_cli.tasks.bulk import BulkPredictor
from stvit_cli.tasks.data_view import DataView
from stvit_cli.tasks.exported import ExportedModel, ExportForm, Run
from stvit_cli.tasks.image_scores import ImageScores
from stvit_cli.tasks.predictions import Predictions
from stvit_cli.tasks.report_parts import ReportSection, ShownImage
from stvit_cli.tasks.spec import EvalDrawing, PredictOptions, ReportInput, TaskSpec, Trained


def _build(recipe: Recipe, weights: Path | None) -> Task:
    from stvit_cli.tasks.classification.task import build_classification_task

    return build_classification_task(recipe, weights)


def _resolve(recipe: Recipe) -> tuple[Recipe, list[str]]:
    if recipe.distill.teacher is None:
        return recipe, []
    from stvit_cli.tasks.classification.distillation import resolve_teacher

    return resolve_teacher(recipe)


def _build_evaluation(recipe: Recipe, info: WeightsInfo, *, whole: bool) -> Evaluation:
    from stvit_cli.tasks.classification.task import build_classification_evaluation

    return build_classification_evaluation(recipe, info, whole=whole)


def _build_test(recipe: Recipe, info: WeightsInfo) -> Evaluation:
    from stvit_cli.tasks.classification.task import build_classification_test

    return build_classification_test(recipe, info)


def _metrics_section(predictions: Predictions) -> ReportSection:
    from stvit_cli.tasks.classification.predictions import ClassificationPredictions, MultiLabelPredictions
    from stvit_cli.tasks.classification.report import metrics_section

    assert isinstance(predictions, ClassificationPredictions | MultiLabelPredictions)
    return metrics_section(predictions)


def _create_model(info: WeightsInfo) -> nn.Module:
    return create_model(info.model, info.num_classes, info.in_chans, image_size=info.image_size, **options_of(info))


def _create_cost_model(recipe: Recipe) -> nn.Module:
    model = recipe.model
    return create_model(model.name, in_chans=model.in_chans, image_size=recipe.data.image_size, **options_of(model))


def _predict(
    trained: Trained, images: Sequence[ImageSource], options: PredictOptions, device: torch.device
) -> Iterator[ImagePrediction]:
    from stvit_cli.tasks.classification import predict

    return predict.predict(
        trained,
        images,
        top=options.top,
        device=device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        score_threshold=options.score_threshold,
        precision=options.precision,
    )


def _bulk_predictor(trained: Trained, options: PredictOptions, device: torch.device) -> BulkPredictor:
    from stvit_cli.tasks.classification.bulk import ClassPredictor

    return ClassPredictor(trained, options, device)


def _image_scores(predictions: Predictions) -> ImageScores:
    from stvit_cli.tasks.classification.image_scores import image_scores

    return image_scores(predictions)


def _read_predictions(path: Path, class_names: Sequence[str]) -> Predictions:
    from stvit_cli.tasks.classification.predictions import read_classification_predictions

    return read_classification_predictions(path, class_names)


def _view_data(recipe: Recipe) -> DataView:
    from stvit_cli.tasks.classification.data_view import view_classification

    return view_classification(recipe)


def _training_images(recipe: Recipe) -> Images:
    from stvit_cli.tasks.classification.data import data_section, training_images

    return training_images(data_section(recipe))


def _report(given: ReportInput) -> Iterator[ReportSection]:
    from stvit_cli.tasks.classification.report import classification_report

    return classification_report(given)


def _export_form(trained: Trained) -> ExportForm:
    from stvit_cli.tasks.classification.export import export_form

    return export_form(trained)


def _exported_model(info: WeightsInfo, run: Run) -> ExportedModel:
    return ExportedModel(run)


def _sample_sheet(task: Task, num_images: int) -> Sequence[ShownImage]:
    from stvit_cli.tasks.classification.sample_sheet import sample_sheet

    return sample_sheet(task, num_images)


def _draw_evaluation(given: ReportInput) -> Iterator[EvalDrawing]:
    from stvit_cli.tasks.classification.eval_drawings import draw_evaluation

    return draw_evaluation(given)


SPEC = TaskSpec(
    name="classification",
    build=_build,
    build_evaluation=_build_evaluation,
    build_test=_build_test,
    create_model=_create_model,
    predict=_predict,
    bulk_predictor=_bulk_predictor,
    create_cost_model=_create_cost_model,
    view_data=_view_data,
    folder_kind="imagefolder",
    read_predictions=_read_predictions,
    image_scores=_image_scores,
    resolve=_resolve,
    export_form=_export_form,
    exported_model=_exported_model,
    training_images=_training_images,
    report=_report,
    metrics_section=_metrics_section,
    sample_sheet=_sample_sheet,
    draw_evaluation=_draw_evaluation,
)
