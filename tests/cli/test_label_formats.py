"""Data sets of other tools' formats, trained, evaluated and resumed by the real command line as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.label_files import BOXES, WRITERS, labelme_json, write_image, write_text, write_ultralytics, yolo_labels

import stvit_cli
from stvit_cli.data.coco_index import read_boxes, read_coco
from stvit_cli.data.formats import read_format

SMALL = [
    *(
        "data.num_workers=0",
        "train.device=cpu",
        "train.kernels=false",
        "train.global_batch_size=2",
        "schedule.steps=1",
        "schedule.warmup_steps=0",
    ),
    *("detection.channels=8", "detection.fc_dim=8", "detection.num_proposals=8", "detection.num_samples=8"),
    *("detection.short_sides=[64]", "detection.long_side=96", "model.name=stvit-nano", "detection.freeze_batch_norm=false"),
]


def words(kind: str, root: Path, run: Path, *more: str) -> list[str]:
    return [
        "train",
        "--recipe",
        "shapes-mask-rcnn",
        "--data",
        str(root),
        "--output",
        str(run),
        f"data.kind={kind}",
        *SMALL,
        *more,
    ]


@pytest.mark.parametrize("kind", WRITERS)
def test_each_format_trains_and_evaluates_as_it_is(kind: str, stvit, tmp_path: Path) -> None:
    root = WRITERS[kind](tmp_path / "data")
    ended = stvit(*words(kind, root, tmp_path / "run"))
    assert ended.code == 0, ended.err
    assert "2 images with 3 objects to train on, 1 to evaluate, 2 classes" in ended.err
    assert "OpenCV" not in ended.err
    ended = stvit("eval", tmp_path / "run", "--json", "-")
    assert (ended.code, json.loads(ended.out)["num_images"]) == (0, 1), ended.err


def test_a_set_without_a_split_holds_a_part_out_and_resumes(stvit, tmp_path: Path) -> None:
    for stem in BOXES:
        write_image(tmp_path / f"data/{stem}.png")
        write_text(tmp_path / f"data/{stem}.json", labelme_json(stem))
    ended = stvit(*words("labelme", tmp_path / "data", tmp_path / "run", "data.val_fraction=0.3", "checkpoint.every_steps=1"))
    assert ended.code == 0, ended.err
    assert "1 of 3 images are held out" in ended.err
    assert stvit("train", "--resume", tmp_path / "run").code == 0
    again = stvit("eval", tmp_path / "run", "--data", tmp_path / "data", "--json", "-")
    assert json.loads(again.out)["num_images"] == 1, again.err  # its own folder: what it held out
    write_image(tmp_path / "data/new.png")
    refused = stvit("train", "--resume", tmp_path / "run")
    assert (refused.code, "data" in refused.err) == (0, True)  # images without objects are not trained on
    write_text(tmp_path / "data/new.json", labelme_json("a", "new.png"))
    changed = stvit("train", "--resume", tmp_path / "run")
    assert changed.code == 2, changed.err


def test_what_is_wrong_names_the_users_file(stvit, tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path / "data")
    path = write_text(root / "labels/train/c.txt", yolo_labels("c") + "5 0.5 0.5 0.1 0.1\n")
    ended = stvit(*words("yolo", root, tmp_path / "run"))
    assert ended.code == 2
    assert f"{path}, line 2: class 5, expected 0 to 1, the 2 classes of data.yaml" in ended.err
    assert not (tmp_path / "run").exists()
    ended = stvit(*words("yolo", root, tmp_path / "run", "detection.invalid_annotations=skip"))
    assert (ended.code, "1 of an unknown class" in ended.err) == (0, True), ended.err
    assert stvit(*words("yolo", tmp_path / "nothing", tmp_path / "other")).code == 2


@pytest.mark.parametrize("kind", WRITERS)
def test_convert_writes_a_coco_file_for_each_split_that_trains_as_the_folder_does(kind: str, stvit, tmp_path: Path) -> None:
    root = WRITERS[kind](tmp_path / "data")
    ended = stvit("data", "convert", root, tmp_path / "coco.json", "--json", "-", *(() if kind == "yolo" else ("--from", kind)))
    assert ended.code == 0, ended.err
    assert [file["split"] for file in json.loads(ended.out)["files"]] == ["train", "val"]
    own = {split: read_boxes(boxes) for split, boxes in read_format(kind, root).splits.items()}
    for split, index in own.items():
        converted = read_coco(tmp_path / f"coco-{split}.json", index.folder)
        assert (converted.file_names, converted.image_ids) == (index.file_names, index.image_ids)
        assert converted.categories == index.categories
        for position in range(len(index)):
            mine, theirs = ([entry | {"id": 0} for entry in each.objects(position)] for each in (index, converted))
            assert mine == theirs
    assert f"detection.train_json={tmp_path}/coco-train.json" in ended.err
    assert stvit("data", "convert", root, tmp_path / "coco.json").code == 2  # nothing is overwritten


def test_what_convert_refuses(stvit, image_folder: Path, tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path / "data")
    path = write_text(root / "labels/train/c.txt", "0 0.5 0.5 0.1\n")
    ended = stvit("data", "convert", root, tmp_path / "coco.json")
    assert ended.code == 2
    assert f"{path}, line 1" in ended.err
    assert "--skip-invalid" in ended.err
    assert not list(tmp_path.glob("*.json"))
    ended = stvit("data", "convert", root / "data.yaml", tmp_path / "coco.json", "--skip-invalid")
    assert (ended.code, "1 that cannot be read" in ended.err) == (0, True), ended.err
    for words_, reason in (
        ([root, tmp_path / "coco.txt"], "ending in .json"),
        ([root, tmp_path / "x.json", "--from", "volo"], "Did you mean 'yolo'?"),
        ([tmp_path / "dta", tmp_path / "x.json", "--from", "yolo"], "Did you mean 'data'?"),
        ([image_folder, tmp_path / "x.json"], "boxes or polygons are expected"),
    ):
        ended = stvit("data", "convert", *words_)
        assert (ended.code, reason in ended.err) == (2, True), ended.err


def test_a_folder_of_roboflow_with_polygons_trains_masks_without_a_recipe(stvit, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split, stems in (("train", "ac"), ("valid", "b")):
        for stem in stems:
            write_image(root / split / f"images/{stem}.png")
            write_text(root / split / f"labels/{stem}.txt", "0 0.1 0.2 0.8 0.2 0.6 0.9 0.2 0.8\n")
    write_text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n")
    small = [word for word in SMALL if not word.startswith(("schedule", "detection.short", "detection.long", "train.global"))]
    words_ = ["train", "--data", root, "--output", tmp_path / "run", *small, "schedule.min_steps=null", "schedule.epochs=1"]
    ended = stvit(*words_, "schedule.warmup_epochs=0")
    assert ended.code == 0, ended.err
    assert "YOLO, data.yaml, polygons; recipe own-masks" in ended.err
    assert "2 images with 2 objects to train on, 1 to evaluate, 1 classes" in ended.err
    figures = json.loads(stvit("eval", tmp_path / "run", "--json", "-").out)
    assert "mask_ap" in figures


def test_the_keys_of_coco_files_are_refused_beside_another_kind(stvit, tmp_path: Path) -> None:
    ended = stvit(*words("yolo", write_ultralytics(tmp_path / "data"), tmp_path / "run", "detection.train_json=x.json"))
    assert ended.code == 2
    assert "detection.train_json: belongs to data.kind coco, but data.kind is yolo" in ended.err


def test_a_file_names_the_classes_of_ids(stvit, tmp_path: Path) -> None:
    for stem in BOXES:
        write_image(tmp_path / f"data/images/{stem}.png")
        write_text(tmp_path / f"data/labels/{stem}.txt", yolo_labels(stem))
    write_text(tmp_path / "data/my names.txt", "Katze\nHund\nMaus\n")
    ended = stvit(*words("yolo", tmp_path / "data", tmp_path / "run", "data.class_names_file=my names.txt"))
    assert (ended.code, "3 classes" in ended.err) == (0, True), ended.err
    assert stvit_cli.load(tmp_path / "run").class_names == ("Katze", "Hund", "Maus")
    assert stvit("eval", tmp_path / "run").code == 0
    write_text(tmp_path / "data/my names.txt", "Katze\n")
    ended = stvit(*words("yolo", tmp_path / "data", tmp_path / "other", "data.class_names_file=my names.txt"))
    assert "class 1, expected 0 to 0, the 1 classes of data.class_names_file" in ended.err
