"""What is suggested for a wrong name: the near one, and nothing where all are far."""

from __future__ import annotations

import pytest

from stvit_cli.recipe.error_messages import nearest_key
from stvit_cli.utils.text import did_you_mean, nearest, suggestion


@pytest.mark.parametrize(
    ("name", "choices", "meant"),
    [
        ("quikstart", ["deit300", "quickstart"], "quickstart"),
        ("QUICKSTART", ["quickstart"], "quickstart"),
        ("Train", ["val", "train"], "train"),
        ("stvit_s", ["stvit-b", "stvit-s"], "stvit-s"),
        ("AED", ["ADE"], "ADE"),
        ("d", ["a", "b", "dd"], "dd"),
        ("cat.pgn", ["cat.png"], "cat.png"),
        ("cat.jpg", ["dog.jpg", "cat.png"], "cat.png"),
        ("cat.JPG", ["cat.png", "cat.jpg"], "cat.jpg"),
        ("a.png", ["b_labels.png", "a_labels.png"], "a_labels.png"),
        ("stvit-small", ["stvit-s", "stvit-l"], "stvit-s"),
        ("instances_train2014.json", ["instances_val2017.json", "instances_train2017.json"], "instances_train2017.json"),
        ("--datta", ["--output", "--data"], "--data"),
        ("own-img", ["own-images", "own-masks"], "own-images"),
        ("ade-upernet", ["shapes-upernet", "ade20k-upernet-160k"], "ade20k-upernet-160k"),
    ],
)
def test_a_near_name_is_suggested(name: str, choices: list[str], meant: str) -> None:
    assert did_you_mean(name, choices) == f" Did you mean '{meant}'?"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("stvit-x", ["stvit-s", "stvit-b"]),
        ("own", ["own-boxes", "own-images", "own-maps", "own-masks"]),
        ("mask-rcnn", ["coco-mask-rcnn-1x", "shapes-mask-rcnn"]),
        ("maskrcnn", ["coco-mask-rcnn-1x", "shapes-mask-rcnn"]),
    ],
)
def test_names_that_are_equally_near_are_all_suggested(name: str, meant: list[str]) -> None:
    assert nearest(name, ["quickstart", *meant]) == meant


def test_one_of_too_many_is_not_picked() -> None:
    assert did_you_mean("IMG", [f"IMG_{i:04}" for i in range(7)]) == ""


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("mine.yaml", ["mine.yaml"]),
        ("caf\u00e9.png", ["cafe\u0301.png"]),  # one name in two Unicode forms: the suggestion would look like the name itself
        ("cat.jpg", ["dog.jpg", "cow.jpg"]),
        ("instances_val2017.json", ["instances_train2017.json"]),
        ("train_images", ["val_images"]),
        ("a", ["b", "c"]),
        ("", ["a", "train"]),
        ("resnet50", ["stvit-s", "stvit-b"]),
        ("mine", ["quickstart", "finetune384"]),
        ("own-data", ["own-images", "own-boxes"]),
        ("mask", ["coco-cascade-mask-rcnn-1x"]),
        ("learning_rate", ["label_smoothing", "warmup_lr", "crop_ratio"]),
    ],
)
def test_a_far_name_and_the_name_itself_are_not_suggested(name: str, choices: list[str]) -> None:
    assert did_you_mean(name, choices) == ""


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("optim.lrr", ["optim.lr"]),
        ("OPTIM.LR", ["optim.lr"]),
        ("Optim.lr", ["optim.lr"]),
        ("lr", ["optim.lr"]),
        ("LR", ["optim.lr"]),
        ("schedule.epoch", ["schedule.epochs"]),
        ("optim.warmup_epochs", ["schedule.warmup_epochs"]),
        ("schedule.lr", ["optim.lr"]),
        ("modle", ["model.name"]),
        ("modle.name", ["model.name"]),
        ("train.batch_size", ["train.global_batch_size", "train.batch_size_per_device"]),
        ("warmup_epoch", ["schedule.warmup_epochs"]),
        ("kind", ["data.kind", "loss.kind", "distill.kind", "schedule.kind"]),
        ("train.num_workers", ["data.num_workers"]),
        ("eval.flip", ["eval.hflip"]),
        ("descripton", ["description"]),
    ],
)
def test_the_nearest_key_is_suggested(wrong: str, meant: list[str]) -> None:
    assert nearest_key(wrong) == suggestion(meant)


@pytest.mark.parametrize(
    "wrong", ["", "foo", "<<", "foo.bar", "optim.learning_rate", "optim.betta_schedule", "data.mode", "train.size"]
)
def test_no_far_key_of_another_section_is_suggested(wrong: str) -> None:
    assert nearest_key(wrong) == ""
