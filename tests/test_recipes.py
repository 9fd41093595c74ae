"""Every shipped recipe, driven through the real command line: a dry run (everything built, a step taken) on shrunken settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.idx_files import write

from stvit_cli.data.class_names import read_class_names
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.inheritance import as_single_file

RECIPES = recipe_io.list_recipes()
NAMES = [path.stem for path in RECIPES]

SHRUNK = {
    "classification": [
        *("data.image_size=64", "data.num_workers=0", "train.precision=fp32"),
        *("train.global_batch_size=4", "train.batch_size_per_device=2", "train.device=cpu"),
    ],
    "detection": [
        *("data.image_size=64", "data.num_workers=0", "shapes.num_train=4", "shapes.num_val=1"),
        *("detection.short_sides=[32, 64]", "detection.long_side=96", "detection.channels=16", "detection.fc_dim=16"),
        *("train.global_batch_size=4", "train.batch_size_per_device=2", "train.device=cpu"),
    ],
    "segmentation": [
        *("data.image_size=64", "data.num_workers=0", "shapes.num_train=4", "shapes.num_val=1"),
        *("segmentation.max_size=[64, 64]", "segmentation.channels=16", "segmentation.aux_channels=8"),
        *("train.global_batch_size=4", "train.batch_size_per_device=2", "train.device=cpu"),
    ],
}
"""What makes a recipe of each task small enough for a test; all else is as shipped."""

SOURCED = ("deit300", "finetune384", "imagenet21k90", "finetune-21k-to-1k", "coco-", "ade20k-")
MARKS = ("[P]", "[D]", "[S]", "[W]", "[O]")


def test_the_recipes_are_there() -> None:
    assert len(NAMES) == 23
    folder = Path(__file__).parents[1] / "recipes"
    assert sorted(path.stem for path in folder.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs(
    stvit,
    name: str,
    image_folder: Path,
    coco_tree: Path,
    ade20k_tree: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_io.load(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    idx = tmp_path_factory.mktemp("idx")
    for split in ("train", "t10k"):
        write(idx, split)
    of_task = {"classification": image_folder, "detection": coco_tree, "segmentation": ade20k_tree}
    kinds = {"imagefolder": image_folder, "coco": coco_tree, "ade20k": ade20k_tree, "auto": of_task[recipe.task], "idx": idx}
    data = kinds.get(recipe.data.kind)
    small = "isotropic-mini-stvit-20" if recipe.model.name.startswith("isotropic-") else "stvit-nano"
    words = ["--model", small, *SHRUNK[recipe.task], *(["--data", str(data)] if data is not None else [])]
    words += ["data.class_names_file=null"] * (recipe.data.class_names_file is not None)
    ended = stvit("train", "--recipe", name, "--dry-run", "--json", "figures.json", *words)
    assert ended.code == 0, ended.err
    figures = json.loads(Path("figures.json").read_text())
    assert figures["global_batch_size"] == 4
    assert figures["grad_accum_steps"] == 2
    assert figures["loss"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_head_of_a_recipe_says_what_it_is(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    assert f"--recipe {path.stem}" in head or "\n#\n#   stvit " in path.read_text()
    comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "Cost:" in comments
    assert "Paper's result" in comments
    assert recipe_io.load(path.stem).description


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(SOURCED)])
def test_every_value_of_the_paper_s_recipes_names_its_source(name: str) -> None:
    text = as_single_file(recipe_io.resolve(name).layers)
    settings = [
        line
        for line in text.splitlines()
        if line.startswith("  ") and not line.startswith(("    ", "  kind: image", "  kind: coco", "  kind: ade20k"))
    ]
    unsourced = [line for line in settings if not any(mark in line for mark in MARKS) and "name:" not in line]
    assert unsourced == []
    assert len(settings) > 25


def test_recipes_with_a_base_resolve_to_what_they_were_before_they_had_one() -> None:
    """The golden values were written down when each file still held all of its settings."""
    recorded = json.loads((Path(__file__).parent / "golden" / "recipes_resolved.json").read_text())
    assert len(recorded) == 7
    for name, before in recorded.items():
        now = json.loads(json.dumps(recipe_io.flatten(recipe_io.load(name))))
        assert {key: now[key] for key in before} == before, name


def test_the_paper_s_training_is_the_paper_s() -> None:
    """Section C of the supplement, written down a second time."""
    recipe = recipe_io.load("deit300")
    rates = {
        model: recipe_io.load("deit300", [f"model.name={model}"]).drop_path_rate for model in ("stvit-s", "stvit-b", "stvit-l")
    }
    assert rates == {"stvit-s": 0.1, "stvit-b": 0.4, "stvit-l": 0.6}
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs, recipe.schedule.kind) == (300, 5, "cosine")
    assert (recipe.peak_lr, recipe.optim.weight_decay, recipe.train.global_batch_size) == (1e-3, 0.05, 1024)
    augment = recipe.augment
    assert (augment.auto_augment, augment.mixup, augment.cutmix) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0)
    assert (augment.random_erasing, augment.label_smoothing, augment.repeats) == (0.25, 0.1, 3)
    assert recipe.train.ema_decay is None
    assert recipe.data.image_size == 224


def test_the_paper_s_segmentation_is_the_paper_s() -> None:
    """Section C and the published settings of Swin that it follows, written down a second time."""
    recipe = recipe_io.load("ade20k-upernet-160k")
    schedule, section = recipe.schedule, recipe.segmentation
    assert recipe.drop_path_rate == recipe_io.load("ade20k-upernet-160k", ["model.name=stvit-s"]).drop_path_rate == 0.3
    assert (schedule.kind, schedule.steps, schedule.power, schedule.min_lr) == ("poly", 160_000, 1.0, 0.0)
    assert (schedule.warmup_steps, schedule.warmup_lr / recipe.peak_lr) == (1500, pytest.approx(1e-6))
    assert (recipe.peak_lr, recipe.optim.weight_decay, recipe.train.global_batch_size) == (6e-5, 0.01, 16)
    assert (recipe.data.image_size, section.max_size, section.scale_range, section.max_class_share) == (
        512,
        (2048, 512),
        (0.5, 2),
        0.75,
    )
    assert (section.channels, section.aux_channels, section.aux_weight, section.dropout) == (512, 256, 0.4, 0.1)
    assert (len(set(section.class_names)), section.reduce_zero_label, section.photometric) == (150, True, True)


def test_the_paper_s_fine_tuning_is_the_paper_s() -> None:
    recipe, training = recipe_io.load("finetune384"), recipe_io.load("deit300")
    assert (recipe.schedule.epochs, recipe.peak_lr, recipe.optim.weight_decay) == (30, 1e-5, 1e-8)
    assert (recipe.train.global_batch_size, recipe.data.image_size) == (512, 384)
    assert recipe.augment == training.augment
    assert recipe.model == training.model


def test_imagenet_21k_is_trained_as_swin_was() -> None:
    """Swin Transformer's published settings, given for a batch of 512, written down a second time."""
    recipe = recipe_io.load("imagenet21k90")
    schedule, factor = recipe.schedule, recipe.train.global_batch_size / 512
    assert (recipe.peak_lr, schedule.warmup_lr, schedule.min_lr) == pytest.approx((1.25e-4 * 8, 1.25e-7 * 8, 1.25e-6 * 8))
    assert (factor, schedule.epochs, schedule.warmup_epochs, schedule.update) == (8, 90, 5, "step")
    assert (recipe.optim.weight_decay, recipe.optim.clip_grad_norm) == (0.05, 5.0)
    rates = [recipe_io.load("imagenet21k90", [f"model.name={name}"]).drop_path_rate for name in ("stvit-s", "stvit-b", "stvit-l")]
    assert rates == [0.1, 0.2, 0.2]
    assert recipe.augment == recipe_io.load("deit300").augment.model_copy(update={"repeats": 1})
    assert len(read_class_names(str(recipe.data.class_names_file))) == 21_841


def test_the_fine_tuning_from_21k_is_swin_s() -> None:
    recipe, training = recipe_io.load("finetune-21k-to-1k"), recipe_io.load("imagenet21k90")
    schedule, factor = recipe.schedule, recipe.train.global_batch_size / 512
    assert (recipe.peak_lr, schedule.warmup_lr, schedule.min_lr) == pytest.approx((2e-5 * 2, 2e-8 * 2, 2e-7 * 2))
    assert (factor, schedule.epochs, schedule.warmup_epochs, recipe.optim.weight_decay) == (2, 30, 5, 1e-8)
    assert (recipe.augment, recipe.model) == (training.augment, training.model)
    assert recipe.finetune.keep_classes


@pytest.mark.parametrize(
    ("name", "epochs", "milestones", "sides"),
    [("1x", 12, (8, 11), {800}), ("3x-ms", 36, (27, 33), {*range(480, 801, 32)})],
)
@pytest.mark.parametrize("head", ["mask-rcnn", "cascade-mask-rcnn"])
def test_the_paper_s_detection_is_the_paper_s(
    head: str, name: str, epochs: int, milestones: tuple[int, ...], sides: set[int]
) -> None:
    """Section C of the supplement, and the published settings of Swin, written down a second time."""
    recipe = recipe_io.load(f"coco-{head}-{name}")
    models = {"stvit-s": 0.1, "stvit-b": 0.3}
    assert {m: recipe_io.load(recipe.name, [f"model.name={m}"]).drop_path_rate for m in models} == models
    assert (recipe.schedule.kind, recipe.schedule.epochs, recipe.schedule.milestones) == ("step", epochs, milestones)
    assert (recipe.schedule.warmup_steps, recipe.schedule.warmup_lr) == (500, 1e-7)
    assert (recipe.peak_lr, recipe.optim.weight_decay, recipe.train.global_batch_size) == (1e-4, 0.05, 16)
    detection = recipe.detection
    assert (detection.head, set(detection.short_sides), detection.short_sides[-1], detection.long_side) == (
        head,
        sides,
        800,
        1333,
    )
    assert (detection.num_proposals, detection.num_samples) == (2000 if "cascade" in head else 1000, 512)
    assert (detection.channels, detection.fc_dim, detection.anchor_scale) == (256, 1024, 8)
    assert (detection.score_threshold, detection.nms_threshold, detection.max_detections) == (0.05, 0.5, 100)
    assert recipe.augment.hflip == 0.5
    assert recipe.model.grid_sizes == (16, 8, 2, 1)


def test_the_quickstart_is_small() -> None:
    recipe = recipe_io.load("quickstart")
    assert (recipe.model.name, recipe.data.kind, recipe.data.image_size) == ("stvit-nano", "digits", 64)
    assert recipe.augment.hflip == 0, "a mirrored digit is none"
    assert recipe != Recipe()
