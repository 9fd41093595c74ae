"""The model card of a run: ``README.md`` in its directory, in the form that the Hugging Face Hub reads.

It names no path and no user of this machine, and claims no licence: whoever publishes the weights states it.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import yaml

from stvit_cli import __version__
from stvit_cli.analysis.packaged_card import PackagedAs, licence_lines, listed, loading_lines
from stvit_cli.engine.kept_evaluation import read_evaluation
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.models.timm_models import NAMES_IN_TIMM
from stvit_cli.models.weights.file import WeightsInfo, read_info
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.metric_names import MANY_IMAGES, metric_name, metric_value
from stvit_cli.utils.safetensors_header import num_parameters
from stvit_cli.utils.text import first_few, printable
from stvit_cli.utils.views import Views

CARD = "README.md"
REPO = "OWNER/NAME"
"""Stands for the repository in a card until `stvit push` knows its name."""

_PAPER = "https://arxiv.org/abs/2211.11167"
_MARK = re.compile(r"\n<!-- stvit ([0-9a-f]{16}) -->\n\Z")
_PIPELINES = {"classification": "image-classification", "detection": "object-detection", "segmentation": "image-segmentation"}
_WHAT = {
    "classification": "gives an image one of {classes}",
    "detection": "finds objects of {classes} in an image",
    "segmentation": "gives every pixel of an image one of {classes}",
}
_MANY_LABELS = "gives an image any number of {classes}"
_TYPES = {
    "top1": "accuracy",
    "top5": "accuracy",
    "map": "mean_average_precision",
    "miou": "mean_iou",
    "macro_f1": "f1",
    "f1": "f1",
}
"""The Hub's names of metrics; others keep their own."""
_SYNTHETIC = {"digits": "scikit-learn's handwritten digits", "shapes": "synthetic shapes"}
_NO_METRICS = ("num_images", "subset_num_images", "seconds", "step", "epoch", "weights_step")
"""What else a row of metrics holds."""
_LOCAL_PATHS = (
    *("data.dir", "data.table", "data.val_table", "data.test_split", "data.image_dir", "eval.subset_dir"),
    *("distill.teacher", "detection.results_json"),
)


@dataclass(frozen=True)
class _Run:
    """What a card is made of."""

    recipe: Recipe
    info: WeightsInfo
    environment: Mapping[str, Any]
    metrics: Mapping[str, float]
    num_images: Mapping[str, int]
    steps: int | None
    num_params: int
    test: Mapping[str, Any]
    packaged: PackagedAs | None = None

    @property
    def data_name(self) -> str:
        return _data_name(self.recipe) if self.packaged is None else self.packaged.data


def write_card(path: Path) -> bool:
    """Write the card of a run, unless the one that is there was edited by hand.

    Args:
        path: the run directory, with its best weights.

    Returns:
        Whether it was written.

    Raises:
        UserError: no run is there, its weights cannot be read, or the card cannot be written.
    """
    target = path / CARD
    if target.is_file() and not is_generated(target.read_text(encoding="utf-8", errors="replace")):
        return False
    text = card_text(path)
    with writing(target):
        replace_file(target, text.encode())
    return True


def is_generated(text: str) -> bool:
    """Whether a card is as it was written, not edited by hand since."""
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def card_text(path: Path, *, licence: str | None = None, repo: str = REPO, packaged: PackagedAs | None = None) -> str:
    """Return the card of a run as Markdown with YAML at its head.

    Args:
        path: the run directory, with its best weights.
        licence: the Hub's identifier of the weights' licence; None: not stated, and the card says so.
        repo: the repository, for the lines that load it.
        packaged: of weights that come with the package, which are in no repository.

    Raises:
        UserError: no run is there, or its weights cannot be read.
    """
    run = replace(_read(RunDir(path)), packaged=packaged)
    text = "\n".join([*_head(run, licence), *_body(run, licence, repo)])
    return f"{text}\n<!-- stvit {_digest(text)} -->\n"


def public_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe without what names files of this machine, and without its experiment trackers."""
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"loggers": (), "tensorboard": False})})
    for key in _LOCAL_PATHS:
        section, _, leaf = key.partition(".")
        value = getattr(getattr(recipe, section), leaf)
        if isinstance(value, str) and (key == "data.dir" or is_local(value)):
            changed = getattr(recipe, section).model_copy(update={leaf: None})
            recipe = recipe.model_copy(update={section: changed})
    changed = {}
    for section in ("detection", "segmentation"):
        values = getattr(recipe, section)
        local = {
            key: PurePath(value).name for key, value in values.model_dump().items() if isinstance(value, str) and is_local(value)
        }
        changed[section] = values.model_copy(update=local)
    return recipe.model_copy(update=changed)


def is_local(text: str) -> bool:
    """Whether a value of a recipe is a path of this machine."""
    return text.startswith(("/", "~", "\\", "..")) or text[1:3] == ":\\"


def _read(run: RunDir) -> _Run:
    run.require_run()
    info = read_info(run.best)
    kept, state = read_evaluation(run), _newest_state(run)
    best = state.get("run", {}).get("best") or {}
    metrics = kept.metrics if kept is not None else best.get("metrics", {})
    counts = {"training": state.get("fingerprint", {}).get("num_samples"), "validation": metrics.get("num_images")}
    return _Run(
        recipe=public_recipe(recipe_io.load(run.recipe)),
        info=info,
        environment=run.read_environment(),
        metrics={name: value for name, value in metrics.items() if _is_shown(name, value)},
        num_images={name: int(count) for name, count in counts.items() if count},
        steps=state.get("run", {}).get("step"),
        num_params=num_parameters(run.best),
        test=_test_row(run),
    )


def _test_row(run: RunDir) -> dict[str, Any]:
    """Return the row of the evaluation on the test set, empty where there was none."""
    try:
        rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return {}
    return next((row for row in reversed(rows) if isinstance(row, dict) and row.get("kind") == "test"), {})


def _is_shown(name: str, value: object) -> bool:
    """Whether a metric is in a card: not those of one class each, and not those that are not defined."""
    return isinstance(value, float) and 0 <= value < math.inf and "/" not in name


def _newest_state(run: RunDir) -> dict[str, Any]:
    """Return the state of the newest checkpoint that can be read, empty without one: the card says less then."""
    for path in sorted(run.checkpoints.glob("step_*/state.json"), reverse=True):
        try:
            state = json.loads(path.read_bytes())["state"]
        except (OSError, ValueError, KeyError):
            continue
        if isinstance(state, dict):
            return state
    return {}


def _head(run: _Run, licence: str | None) -> Iterator[str]:
    """Yield the YAML that the Hub reads."""
    info = run.info
    in_timm = is_in_timm(info)
    data: dict[str, Any] = {"license": licence} if licence else {}
    data["library_name"] = "timm" if info.model.startswith("timm/") and in_timm else "stvit"
    data["pipeline_tag"] = _PIPELINES[info.task]
    tags = ["stvit", "super-token-vision-transformer", _PIPELINES[info.task], *(["timm"] if in_timm else [])]
    data["tags"] = [tag for tag in tags if tag != "super-token-vision-transformer" or not info.model.startswith("timm/")]
    if run.recipe.data.kind == "timm" and (run.recipe.data.name or "").startswith("hfds/"):
        data["datasets"] = [str(run.recipe.data.name).removeprefix("hfds/")]
    if run.metrics:
        results = [_result(run, run.metrics, "validation")]
        results += [_result(run, _shown(run.test), "test")] if run.test else []
        data["model-index"] = [{"name": _title(run), "results": results}]
    if run.packaged is not None:
        data["stvit"] = listed(run.packaged, run.recipe, run.metrics, run.num_images.get("validation", 0), run.test)
    yield "---"
    if not licence:
        yield "# license: state the licence of these weights here, such as apache-2.0 or cc-by-4.0"
    yield yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000).rstrip()
    yield "---"


def _shown(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if _is_shown(name, value) and name not in _NO_METRICS}


def _result(run: _Run, values: Mapping[str, float], split: str) -> dict[str, Any]:
    metrics = [
        {"type": _TYPES.get(name, name), "value": round(value, 4), "name": metric_name(name).label + _unit(name)}
        for name, value in values.items()
        if metric_name(name).unit == "%"
    ]
    task = _PIPELINES[run.info.task]
    dataset = {"type": run.recipe.data.kind, "name": f"{run.data_name}, {split}"}
    return {"task": {"type": task, "name": task.replace("-", " ").capitalize()}, "dataset": dataset, "metrics": metrics}


def _unit(name: str) -> str:
    return f" ({metric_name(name).unit})" if metric_name(name).unit else ""


def _body(run: _Run, licence: str | None, repo: str) -> Iterator[str]:
    info = run.info
    count = f"{info.num_classes} class{'es' * (info.num_classes != 1)}"
    does = (_MANY_LABELS if info.multi_label else _WHAT[info.task]).format(classes=count)
    yield f"\n# {_escaped(_title(run))}\n"
    yield (
        f"{_escaped(info.model)} with {run.num_params / 1e6:.2f} M parameters, trained with stvit {_version(run)}.\n"
        f"It {does}, and was trained on images of {info.image_size} pixels."
    )
    if not info.model.startswith("timm/"):
        yield f"STViT: *Vision Transformer with Super Token Sampling*, CVPR 2023, [arXiv 2211.11167]({_PAPER})."
    yield from _loading(info, repo) if run.packaged is None else loading_lines(info, run.packaged)
    yield from _metrics(run)
    yield from _data(run)
    yield "\n## Intended use and limits\n"
    chose = "chose the best weights of the run, and on test images, which chose nothing"
    chose = chose if run.test else "also chose the best weights of the run"
    yield (
        "For images like those that it was trained on. The metrics were measured on held-out images of the same data, which\n"
        f"{chose}: on other images, cameras or places expect less, and measure it (`stvit eval`).\n"
        "An image that shows none of the classes gets an answer too. Nothing was tested for fairness or safety."
    )
    if run.packaged is None:
        yield "Add here what the model is meant for, and what not."
    else:
        yield "It is there to try the tools on and to start from, not to be used as it is."
    yield from _training(run)
    yield "\n## Licence\n"
    if run.packaged is not None:
        yield from licence_lines(run.packaged, str(licence))
    elif licence:
        yield f"{_escaped(licence)}, as stated by whoever published these weights."
    else:
        yield (
            "Not stated. Whoever publishes these weights states it: `license:` at the head of this file, or\n"
            "`stvit push --license`. The licences of the training images and of the weights it started from may bind."
        )


def _version(run: _Run) -> str:
    """Return the version that trained the run: a card may be written by a later one."""
    versions = run.environment.get("versions")
    return _escaped(str(versions.get("stvit", __version__))) if isinstance(versions, dict) else __version__


def _loading(info: WeightsInfo, repo: str) -> Iterator[str]:
    yield "\n## Load it\n"
    yield from (
        "```python",
        "import stvit_cli",
        f'model = stvit_cli.load("hf-hub:{repo}")  # or the folder that this file is in',
        'print(model.predict("image.jpg").summary())',
        "```",
    )
    if is_in_timm(info):
        note = "  # registers the models in timm" if not info.model.startswith("timm/") else ""
        yield from ("\nWith timm:\n", "```python", "import timm")
        if note:
            yield f"import stvit_cli{note}"
        yield from (f'model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()', "```")


def _metrics(run: _Run) -> Iterator[str]:
    if not run.metrics:
        return
    num_images = run.num_images.get("validation")
    images = f"{num_images} validation images" if num_images else "the validation images"
    averaged = run.recipe.eval.views.clause
    yield f"\n## Metrics\n\nOf the best weights of the run, on {images} of {_escaped(run.data_name)}{averaged}:\n"
    yield from _table(run.metrics, num_images or MANY_IMAGES)
    if run.test:
        count, averaged = int(run.test["num_images"]), Views.of(run.test).clause
        yield f"\nOn the {count} test images, evaluated once after the training, on which nothing was chosen{averaged}:\n"
        yield from _table(_shown(run.test), count)


def _table(metrics: Mapping[str, float], num_images: float) -> Iterator[str]:
    yield "| metric | value |\n|---|---|"
    for name, value in metrics.items():
        yield f"| {_escaped(metric_name(name).label)}{_unit(name)} | {metric_value(name, value, num_images)} |"


def _data(run: _Run) -> Iterator[str]:
    info = run.info
    counts = "".join(f", {count} {kind} images" for kind, count in run.num_images.items())
    yield f"\n## Data\n\n{_escaped(run.data_name)} (`data.kind={run.recipe.data.kind}`){counts}."
    names = info.class_names
    if names:
        yield f"\nClasses: {_escaped(first_few(names, 50))}."
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (info.mean, info.std))
    channels = f"{info.in_chans} channel{'s' * (info.in_chans > 1)}"
    yield f"\nInput: {channels} of 0 to 1, normalized by mean ({mean}) and standard deviation ({std})."


def _training(run: _Run) -> Iterator[str]:
    versions = run.environment.get("versions", {})
    packages = ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
    device, processes = run.environment.get("device", "?"), run.environment.get("processes", 1)
    yield "\n## Training\n"
    steps = [f"{run.steps} steps on {device}, {processes} process{'es' * (processes != 1)}."] if run.steps else []
    yield "\n".join([*steps, *([f"{_escaped(packages)}."] if packages else []), f"Recipe hash: {run.info.recipe_hash}."])
    text = recipe_io.dump(run.recipe, only_changes=True).rstrip()
    fence = "`" * max(3, 1 + max((len(found) for found in re.findall("`+", text)), default=0))
    yield "\nThe recipe, where it differs from the defaults (`stvit train --recipe FILE --data FOLDER` trains by it):"
    yield f"\n{fence}yaml\n{text}\n{fence}"


def is_in_timm(info: WeightsInfo) -> bool:
    """Whether timm creates the model of a weights file: a classifier of one of the registered models, or of timm's own."""
    return info.task == "classification" and (info.model in NAMES_IN_TIMM or info.model.startswith("timm/"))


def _title(run: _Run) -> str:
    return f"{run.info.model} {run.recipe.name}".strip()


def _data_name(recipe: Recipe) -> str:
    """Return what the data set may be called in public."""
    data = recipe.data
    return _SYNTHETIC.get(data.kind) or (data.name or "own images" if data.kind == "timm" else "own images")


def _escaped(text: str) -> str:
    """Return a text as Markdown that shows it and does nothing else."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(printable(text), quote=False))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
