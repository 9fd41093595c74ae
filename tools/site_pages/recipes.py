"""The reference of recipes, from the schema: every key with its meaning, values, default and an example."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from stvit_cli.recipe import Recipe, Section
from stvit_cli.recipe.error_messages import dotted_keys, expected
from stvit_cli.recipe.io import flatten, list_recipes, load
from stvit_cli.recipe.schema import FREE_ON_RESUME
from stvit_cli.recipe.tasks import TASK_SECTIONS, tasks_with
from stvit_cli.recipe.yaml import flow

EXAMPLES: Mapping[str, Any] = {
    "augment.color_jitter": (0.4, 0.4, 0.4, 0.1),
    "augment.color_jitter_prob": 0.8,
    "augment.gaussian_blur_prob": 0.1,
    "augment.grayscale_prob": 0.1,
    "augment.hflip": 0.0,
    "augment.mix_prob": 0.5,
    "augment.mix_switch_prob": 0.3,
    "augment.vflip": 0.5,
    "checkpoint.every_minutes": 30.0,
    "checkpoint.every_steps": 1000,
    "checkpoint.keep": 5,
    "data.balance": 0.5,
    "data.class_names": ("cat", "dog"),
    "data.class_weights": "balanced",
    "data.dir": "/data/imagenet",
    "data.group_by": "^([^_]+)_",
    "data.image_dir": "photos",
    "data.in_memory": False,
    "data.label_column": "species",
    "data.label_separator": ";",
    "data.mean": (0.5, 0.5, 0.5),
    "data.multi_label": True,
    "data.name": "torch/cifar10",
    "data.num_workers": 4,
    "data.path_column": "file",
    "data.shuffle_window": 32768,
    "data.std": (0.5, 0.5, 0.5),
    "data.table": "train.csv",
    "data.train_split": "train-{0000..0999}.tar",
    "data.val_fraction": 0.1,
    "data.val_split": "t10k",
    "data.val_table": "val.csv",
    "description": "Birds of the garden",
    "detection.exif_orientation": "apply",
    "detection.max_detections": 300,
    "detection.nms_threshold": 0.6,
    "detection.results_json": "results.json",
    "detection.score_threshold": 0.01,
    "detection.short_sides": (480, 640, 800),
    "detection.train_images": "photos",
    "detection.train_json": "train.json",
    "detection.val_images": "photos",
    "detection.val_json": "val.json",
    "distill.alpha": 0.7,
    "distill.teacher": "timm/resnet50",
    "distill.teacher_sha256": "written by the run",
    "distill.temperature": 3.0,
    "eval.batch_size": 16,
    "eval.crop_pct": 0.95,
    "eval.subset": "imagenet-1k",
    "eval.subset_dir": "/data/imagenet/val",
    "finetune.unfreeze_epochs": 2,
    "loss.bce_target_thresh": 0.2,
    "loss.focal_alpha": 0.5,
    "loss.focal_gamma": 1.5,
    "loss.kind": "focal",
    "model.association_grad": True,
    "model.drop_path_rate": 0.2,
    "model.ffn_conv": False,
    "model.grid_sizes": (8, 4, 2, 1),
    "model.kwargs": {"embed_dim": 48, "depths": [2, 2, 2, 2]},
    "model.layer_scale": 1e-06,
    "model.num_iters": 2,
    "model.pos_enc": False,
    "name": "birds",
    "optim.betas": (0.9, 0.95),
    "optim.eps": 1e-06,
    "optim.layer_decay": 0.75,
    "optim.lr": 0.0005,
    "optim.momentum": 0.95,
    "optim.name": "lion",
    "optim.scale_lr_from": 512,
    "schedule.epochs": 50,
    "schedule.min_lr": 1e-06,
    "schedule.patience": 5,
    "schedule.power": 0.9,
    "schedule.warmup_lr": 1e-05,
    "segmentation.aux_weight": 0.2,
    "segmentation.class_names": ("road", "building", "sky"),
    "segmentation.eval_scales": (0.75, 1.0, 1.25),
    "segmentation.ignore_index": 0,
    "segmentation.image_suffix": "_photo.jpg",
    "segmentation.label_values": (0, 255),
    "segmentation.map_suffix": "_mask.png",
    "segmentation.train_images": "photos/train",
    "segmentation.train_maps": "masks/train",
    "segmentation.val_images": "photos/val",
    "segmentation.val_maps": "masks/val",
    "segmentation.window": 512,
    "segmentation.window_stride": 341,
    "shapes.num_val": 200,
    "shapes.seed": 1,
    "train.batch_size_per_device": 64,
    "train.device": "cuda",
    "train.ema_decay": 0.9999,
    "train.kernels": False,
    "train.log_every_steps": 50,
    "train.loggers": ("tensorboard", "wandb"),
    "train.seed": 1,
}
"""Values that explain their keys better than those in the shipped recipes, or that none of these has."""


def page() -> str:
    """Return every key by its section."""
    lines = ["| section | |", "|---|---|"]
    sections = {name: field.default for name, field in Recipe.model_fields.items() if isinstance(field.default, Section)}
    lines += [f"| [`{name}`](#{name}) | {_about(name, section)} |" for name, section in sections.items()]
    lines += ["", "## Keys without a section { #top }", ""]
    for name, field in Recipe.model_fields.items():
        if name not in sections:
            lines += _entry(name, field)
    for name, section in sections.items():
        lines += [f"## {name} {{ #{name} }}", "", _about(name, section), ""]
        for key, field in type(section).model_fields.items():
            lines += _entry(f"{name}.{key}", field)
    return "\n".join(lines)


def _about(name: str, section: Section) -> str:
    tasks = f" Recipes of {' and '.join(tasks_with(name))} alone have it." if name in TASK_SECTIONS else ""
    return " ".join((type(section).__doc__ or "").split()) + tasks


def _entry(key: str, field: FieldInfo) -> Iterator[str]:
    takes, users = expected(field), _recipes_that_set()[key]
    more = f" and {len(users) - 3} more" if len(users) > 4 else ""
    shown = ", ".join(f"`{name}`" for name in (users[:3] if more else users)) + more
    yield from (f"### {key} {{ #{key} }}", "", _escaped(" ".join((field.description or "").split())), "")
    yield f"- **Takes** {_escaped(takes)}; **default** `{flow(field.default)}`"
    yield f"- **Example** `{_word(key, example(key, field))}`"
    if users and key not in ("name", "description"):
        yield f"- **Set by** {shown}"
    if key in FREE_ON_RESUME:
        yield "- May change when a run is resumed."
    yield ""


def _word(key: str, value: Any) -> str:
    """Return key=value as a shell takes it."""
    word = f"{key}={flow(value)}"
    return f'"{word}"' if re.search(r"[][{}*?;$ ()]", word) else word


def example(key: str, field: FieldInfo) -> Any:
    """Return an example of a key's value: what a shipped recipe sets, or another value than the default."""
    if key in EXAMPLES:
        return EXAMPLES[key]
    if users := _recipes_that_set()[key]:
        return _settings()[users[0]][key]
    if isinstance(field.default, bool):
        return not field.default
    literals = [part for part in (field.annotation, *get_args(field.annotation)) if get_origin(part) is Literal]
    others = [value for part in literals for value in get_args(part) if value != field.default]
    return others[0] if others else field.default


@cache
def _settings() -> dict[str, dict[str, Any]]:
    """Return the settings of the shipped recipes, by name."""
    return {path.stem: flatten(load(path.stem)) for path in list_recipes()}


@cache
def _recipes_that_set() -> dict[str, list[str]]:
    """Return for each key the shipped recipes whose value is not the default."""
    defaults = flatten(Recipe())
    return {key: [name for name, settings in _settings().items() if settings[key] != defaults[key]] for key in dotted_keys()}


def _escaped(text: str) -> str:
    """Return text with what Markdown would read as markup escaped, where it is no code, and with keys as code."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]<>{}#])", r"\\\1", part) for part in parts)
