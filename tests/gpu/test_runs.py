"""Runs of each task on a GPU from training to predictions: devices never mix, and a resumed run ends with the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stvit_cli.recipe import io as recipe_io

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

COMMON = ("data.num_workers=0", "train.device=cuda", "checkpoint.every_steps=1", "checkpoint.keep=9", "train.report=false")
IMAGES = (
    "model.name=stvit-nano",
    "data.image_size=32",
    "augment.crop_scale=[0.8,1]",
    "train.global_batch_size=8",
    "schedule.epochs=2",
)
DENSE = ("shapes.num_train=4", "shapes.num_val=2", "train.global_batch_size=2", "schedule.warmup_steps=1")
BOXES = (
    *(
        "detection.short_sides=[64]",
        "detection.long_side=96",
        "detection.channels=16",
        "detection.fc_dim=16",
        "data.image_size=64",
    ),
    *("detection.num_proposals=32", "detection.num_samples=16", "schedule.epochs=1"),
)
EVERYTHING = (
    *("train.precision=fp16", "train.ema_decay=0.9", "augment.mixup=0.8", "augment.cutmix=1.0", "model.drop_path_rate=0.2"),
    *("optim.clip_grad_norm=1.0", "model.checkpointing=true", "augment.random_erasing=0.5", "optim.layer_decay=0.7"),
)
CASES = {
    "classifier, fp16 with everything": ("quickstart", (*IMAGES, *EVERYTHING)),
    "classifier, bf16, focal loss": ("quickstart", (*IMAGES, "train.precision=bf16", "loss.kind=focal", "data.balance=0.5")),
    "several labels": ("quickstart", (*IMAGES, "data.multi_label=true", "augment.mixup=0.8")),
    "distillation": ("quickstart", (*IMAGES, "distill.kind=soft")),
    "mask-rcnn": ("shapes-mask-rcnn", (*DENSE, *BOXES, "train.precision=bf16")),
    "cascade-mask-rcnn": ("shapes-cascade-mask-rcnn", (*DENSE, *BOXES)),
    "faster-rcnn": ("shapes-mask-rcnn", (*DENSE, *BOXES, "detection.head=faster-rcnn")),
    "upernet": (
        "shapes-upernet",
        (
            *(*DENSE, "data.image_size=64", "segmentation.max_size=[64,64]", "segmentation.channels=16"),
            *("segmentation.aux_channels=8", "schedule.steps=2", "train.eval_every_steps=2", "train.ema_decay=0.9"),
        ),
    ),
}
WHERE = [pytest.param("cuda", case, marks=pytest.mark.gpu) for case in CASES]
WHERE += [pytest.param("simulated", case, marks=pytest.mark.slow) for case in ("several labels", "distillation")]


def teacher_words(words: tuple[str, ...]) -> list[str]:
    """Return the overrides of the run that trains the teacher of a case: of one epoch, without a teacher of its own."""
    kept = [word for word in words if not word.startswith(("distill.", "schedule.epochs="))]
    return [*kept, "schedule.epochs=1", "schedule.warmup_epochs=0"]


def test_every_case_is_a_recipe() -> None:
    """Without a GPU, what a case gives twice or wrongly would be seen on a GPU alone."""
    for case, (recipe, words) in CASES.items():
        for given_words in (words, teacher_words(words))[: 2 if case == "distillation" else 1]:
            keys = [word.partition("=")[0] for word in (*COMMON, *given_words)]
            assert len(keys) == len(set(keys))
            teacher = ["distill.teacher=t"] if "distill.kind=soft" in given_words else []
            kind = "table" if case == "several labels" else "imagefolder"
            data = ["data.dir=d", f"data.kind={kind}"] if recipe == "quickstart" else []
            recipe_io.load(recipe, [*COMMON, *data, *given_words, *teacher])


def given(case: str, image_folder: Path, tmp_path: Path) -> list[str | Path]:
    """Return the arguments of ``stvit train`` that name the data of a case, and its teacher."""
    if CASES[case][0] != "quickstart":
        return []
    if case != "several labels":
        return ["--data", image_folder]
    table = tmp_path / "labels.csv"
    rows = [f"{path},{'red' if path.parent.name == 'red' else 'blue;cold'}" for path in sorted(image_folder.glob("*/*/*.png"))]
    table.write_text("\n".join(["path,label", *rows, ""]))
    return ["--data", table]


@pytest.mark.parametrize(("gpu", "case"), WHERE, indirect=["gpu"])
def test_a_run_trains_resumes_evaluates_and_predicts(
    case: str, gpu: str, stvit: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> None:
    recipe, words = CASES[case]
    train = ["train", "--recipe", recipe, *given(case, image_folder, tmp_path), *COMMON, *words]
    if case == "distillation":
        teacher = tmp_path / "teacher"
        data = given(case, image_folder, tmp_path)
        ended = stvit("train", "--recipe", recipe, *data, *COMMON, *teacher_words(words), "--output", teacher)
        assert ended.code == 0, ended.err
        train.append(f"distill.teacher={teacher / 'best.safetensors'}")
    run = tmp_path / "run"
    ended = stvit(*train, "--output", run)
    assert ended.code == 0, ended.err
    assert "on cuda:0" in ended.err

    first, *_, last = sorted((run / "checkpoints").iterdir())
    expected = {path.name: path.read_bytes() for path in last.iterdir()}
    for checkpoint in sorted((run / "checkpoints").iterdir())[2:]:  # back to the first step
        for path in checkpoint.iterdir():
            path.unlink()
        checkpoint.rmdir()
    assert first.name == "step_00000000"
    resumed = stvit("train", "--resume", run)
    assert resumed.code == 0, resumed.err
    assert "bit-identical" not in resumed.err
    if gpu == "simulated" or recipe == "quickstart":  # RoIAlign and resized maps have no fixed order on a GPU
        different = [name for name, content in expected.items() if (last / name).read_bytes() != content]
        assert [name for name in different if name != "state.json"] == []

    evaluated = stvit("eval", run, "--json", "-")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out)["task"] == recipe_io.load(run / "recipe.yaml").task
    image = tmp_path / "image.png"
    Image.effect_noise((64, 48), 60).convert("RGB").save(image)
    predicted = stvit("predict", image, "--weights", run, "--json", "-")
    assert predicted.code == 0, predicted.err
