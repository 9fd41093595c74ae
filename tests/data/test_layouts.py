"""Every layout is recognized by its files; what could be several things is a question answered by one key."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stvit_cli.data.folder_survey import split_of
from stvit_cli.data.layouts import Layout, find_layout
from stvit_cli.errors import UserError

VOC = "<annotation>\n<filename>1.jpg</filename></annotation>"
LABELME = {"version": "5.0.1", "flags": {}, "shapes": [{"label": "a", "points": [[0, 0]], "shape_type": "polygon"}]}


def coco(*names: str, masks: bool = False) -> str:
    """Return a COCO file of images with one object each."""
    images = [{"id": i, "file_name": name, "height": 8, "width": 8} for i, name in enumerate(names)]
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16} for i, _ in enumerate(names)]
    for item in objects:
        item["segmentation"] = [[0, 0, 4, 0, 4, 4]] if masks else []
    return json.dumps({"info": {}, "images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]})


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write files: images by their ending (label maps where the text is "map"), others with their text."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text in ("image", "map"):
            Image.fromarray(np.zeros((8, 8) if text == "map" else (8, 8, 3), np.uint8)).save(path)
        else:
            path.write_text(text)
    return root


def images(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "image")


CASES: dict[str, tuple[dict[str, str], str, str, dict[str, object]]] = {
    "classes": (images("cat/1.jpg", "dog/1.jpg"), "classification", "imagefolder", {}),
    "classes split": (
        images("Train/a/1.jpg", "Train/b/1.jpg", "valid/a/2.jpg", "valid/b/2.jpg"),
        "classification",
        "imagefolder",
        {},
    ),
    "classes unpacked in a folder": (
        images("set/cat/1.jpg", "set/dog/1.jpg"),
        "classification",
        "imagefolder",
        {"data.dir": "set"},
    ),
    "classes unpacked two folders deep": (
        images("set/data/cat/1.jpg", "set/data/dog/1.jpg"),
        "classification",
        "imagefolder",
        {"data.dir": "set/data"},
    ),
    "one split of classes": (images("train/a/1.jpg", "train/b/1.jpg"), "classification", "imagefolder", {"data.dir": "train"}),
    "grey images of the same names": (
        {"cat/1.png": "map", "dog/1.png": "map"},
        "classification",
        "imagefolder",
        {},
    ),
    "roboflow": (
        images("train/1.jpg", "valid/2.jpg", "test/3.jpg")
        | {f"{s}/_annotations.coco.json": coco(n) for s, n in (("train", "1.jpg"), ("valid", "2.jpg"), ("test", "3.jpg"))},
        "detection",
        "coco",
        {
            "detection.train_json": "train/_annotations.coco.json",
            "detection.train_images": "train",
            "detection.val_json": "valid/_annotations.coco.json",
            "detection.val_images": "valid",
        },
    ),
    "coco's own": (
        images("train2017/1.jpg", "val2017/1.jpg")
        | {"annotations/instances_train2017.json": coco("1.jpg", masks=True)}
        | {"annotations/instances_val2017.json": coco("1.jpg"), "annotations/captions_train2017.json": coco("1.jpg")},
        "detection",
        "coco",
        {"detection.train_images": "train2017", "detection.val_images": "val2017"},
    ),
    "one json beside its images": (
        images("1.jpg", "2.jpg") | {"result.json": coco("1.jpg", "2.jpg")},
        "detection",
        "coco",
        {"detection.train_json": "result.json", "detection.train_images": ".", "detection.val_json": None},
    ),
    "one json above its images": (
        images("images/1.jpg") | {"labels/instances_default.json": coco("1.jpg")},
        "detection",
        "coco",
        {"detection.train_images": "images", "detection.val_json": None},
    ),
    "yolo": (
        images("train/images/1.jpg", "valid/images/1.jpg")
        | {"data.yaml": "train: ../train/images\nnames: [a]\nnc: 1\n", "train/labels/1.txt": "0 0.5 0.5 0.2 0.2\n"},
        "detection",
        "yolo",
        {},
    ),
    "yolo without yaml": (
        images("images/train/1.jpg") | {"labels/train/1.txt": "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2", "classes.txt": "a\nb\n"},
        "detection",
        "yolo",
        {},
    ),
    "voc": (images("JPEGImages/1.jpg") | {"Annotations/1.xml": VOC}, "detection", "voc", {}),
    "voc beside": (images("train/1.jpg", "valid/2.jpg") | {"train/1.xml": VOC, "valid/2.xml": VOC}, "detection", "voc", {}),
    "labelme": (images("1.jpg") | {"1.json": json.dumps(LABELME)}, "detection", "labelme", {}),
    "createml": (
        images("1.jpg")
        | {"_annotations.createml.json": '[{"image": "1.jpg", "annotations": [{"label": "a", "coordinates": {"x": 1}}]}]'},
        "detection",
        "createml",
        {},
    ),
    "cvat": (
        images("images/1.jpg")
        | {"annotations.xml": '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'},
        "detection",
        "cvat",
        {},
    ),
    "ade20k": (
        images("images/training/1.jpg", "images/validation/2.jpg")
        | {"annotations/training/1.png": "map", "annotations/validation/2.png": "map"},
        "segmentation",
        "ade20k",
        {"segmentation.train_maps": "annotations/training", "segmentation.val_images": "images/validation"},
    ),
    "masks": (
        images("images/1.jpg", "images/2.jpg") | {"masks/1.png": "map", "masks/2.png": "map"},
        "segmentation",
        "ade20k",
        {"segmentation.train_images": "images", "segmentation.train_maps": "masks", "segmentation.val_images": None},
    ),
    "grey images and masks": (
        {"images/1.png": "map", "masks/1.png": "map"},
        "segmentation",
        "ade20k",
        {"segmentation.train_images": "images", "segmentation.train_maps": "masks"},
    ),
    "coloured masks": (images("images/1.jpg", "masks/1.png"), "segmentation", "ade20k", {"segmentation.train_maps": "masks"}),
    "cityscapes": (
        images(
            "leftImg8bit/train/a/a_leftImg8bit.png",
            "leftImg8bit/train/b/b_leftImg8bit.png",
            "leftImg8bit/val/c/c_leftImg8bit.png",
        )
        | dict.fromkeys([f"gtFine/{name}_gtFine_labelIds.png" for name in ("train/a/a", "train/b/b", "val/c/c")], "map"),
        "segmentation",
        "ade20k",
        {
            "segmentation.train_images": "leftImg8bit/train",
            "segmentation.val_maps": "gtFine/val",
            "segmentation.image_suffix": "_leftImg8bit.png",
        },
    ),
    "suffix": (
        images("1.jpg", "2.jpg") | {"1_mask.png": "map", "2_mask.png": "map"},
        "segmentation",
        "ade20k",
        {"segmentation.train_images": ".", "segmentation.train_maps": ".", "segmentation.map_suffix": "_mask.png"},
    ),
    "camvid": (
        images("train/1.png", "val/2.png", "test/3.png") | dict.fromkeys(("trainannot/1.png", "valannot/2.png"), "map"),
        "segmentation",
        "ade20k",
        {"segmentation.train_images": "train", "segmentation.train_maps": "trainannot", "segmentation.val_maps": "valannot"},
    ),
    "hugging face": (images("train/1.jpg") | {"train/metadata.csv": "file_name,label\n1.jpg,a\n"}, "classification", "table", {}),
    "csv": (images("images/1.jpg") | {"labels.csv": "path;label\nimages/1.jpg;a\n"}, "classification", "table", {}),
    "parquet": ({"data/train-00000-of-00001.parquet": "PAR1 and more"}, "classification", "table", {}),
    "idx": (
        {"raw/train-images-idx3-ubyte": "x", "raw/train-labels-idx1-ubyte.gz": "x"},
        "classification",
        "idx",
        {"data.dir": "raw"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layout_is_recognized(name: str, tmp_path: Path) -> None:
    files, task, kind, keys = CASES[name]
    found = find_layout(tree(tmp_path, files))
    assert (found.task, found.kind, found.keys["data.kind"]) == (task, kind, kind)
    expected = {"data.dir": ""} | keys
    for key, value in expected.items():
        assert found.keys[key] == (str(tmp_path / str(value)) if key == "data.dir" else value), key
    assert "\n" not in found.description


def test_masks_are_told_from_boxes(tmp_path: Path) -> None:
    def masks(name: str, files: dict[str, str]) -> bool:
        return find_layout(tree(tmp_path / name, images("images/1.jpg") | files)).has_masks

    assert masks("a", {"a.json": coco("1.jpg", masks=True)})
    assert not masks("b", {"a.json": coco("1.jpg")})
    assert masks("c", {"labels/1.txt": "0 0.1 0.1 0.2 0.2 0.3 0.3\n"})
    assert not masks("d", {"labels/1.txt": "0 0.1 0.1 0.2 0.2\n"})


def test_annotation_file_itself(tmp_path: Path) -> None:
    tree(tmp_path, images("images/1.jpg") | {"annotations/all.json": coco("1.jpg"), "annotations/old.json": coco("1.jpg")})
    found = find_layout(tmp_path / "annotations/all.json")
    assert found.keys["data.dir"] == str(tmp_path)
    assert found.keys["detection.train_json"] == "annotations/all.json"
    assert found.keys["detection.train_images"] == "images"


AMBIGUOUS: dict[str, tuple[dict[str, str], str]] = {
    "two formats": (
        images("images/1.jpg") | {"a.json": coco("1.jpg"), "labels/1.txt": "0 0.5 0.5 0.2 0.2\n"},
        "data.kind=yolo",
    ),
    "two json": (images("1.jpg") | {"a.json": coco("1.jpg"), "b.json": coco("1.jpg")}, "detection.train_json=b.json"),
    "images twice": (images("a/1.jpg", "b/1.jpg") | {"all.json": coco("1.jpg")}, "detection.train_images=b"),
    "table beside classes": (
        images("cat/1.jpg", "dog/2.jpg") | {"labels.csv": "image,label\ncat/1.jpg,b\n"},
        "data.kind=imagefolder",
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_is_a_question_that_one_key_answers(name: str, tmp_path: Path) -> None:
    files, answer = AMBIGUOUS[name]
    root = tree(tmp_path, files)
    with pytest.raises(UserError) as refused:
        find_layout(root)
    assert answer in str(refused.value)
    assert "Which one?" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 6
    key, _, value = answer.partition("=")
    assert isinstance(find_layout(root, {key: value}), Layout)


REFUSED = {
    "images alone": (images("1.jpg"), "has an image but no labels"),
    "one class": (images("a/1.jpg"), "two or more, side by side"),
    "a table of ids": (
        images("a/1.jpg") | {"breeds.csv": "id,breed\n1,pug\n2,husky\n"},
        "If breeds.csv has them, add data.kind=table",
    ),
    "nothing": ({"notes.txt": "x"}, "holds no images"),
    "archive": ({"photos.zip": "x"}, "unpack it first"),
    "images missing": (images("other.jpg") | {"a.json": coco("1.jpg")}, "detection.train_images=FOLDER"),
    "file names lead out": (images("1.jpg") | {"a.json": coco("../1.jpg")}, "expected a path below"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    files, message = REFUSED[name]
    with pytest.raises(UserError) as refused:
        find_layout(tree(tmp_path, files))
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 6


def test_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="Did you mean 'photos'"):
        find_layout(tmp_path / "photo")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train_set", "train"),
        ("images/Valid", "val"),
        ("valuables", None),
        ("testify", None),
        ("trainer", None),
        ("leftImg8bit/test/bonn", "test"),
    ],
)
def test_split_of(path: str, split: str | None) -> None:
    assert split_of(path) == split
