"""YOLO's label files, in every layout that its tools write; coordinates to half a pixel; lines that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.label_files import BOXES, SIZE, boxes_of, refused, require, write_image, write_text, write_ultralytics, yolo_labels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stvit_cli.data.coco_index import read_boxes
from stvit_cli.data.formats import find_format, read_format
from stvit_cli.data.formats.parsers import yolo_boxes
from stvit_cli.errors import UserError

SPLIT = {"train": "ac", "val": "b"}
ONE_EACH = {"train": "a", "val": "b"}


def write_pairs(root: Path, folders: dict[str, tuple[str, str]]) -> Path:
    """Write each image with its label file: ``{"a": (folder of the image, folder of the label)}``."""
    for stem, (images, labels) in folders.items():
        write_image(root / images / f"{stem}.png")
        write_text(root / labels / f"{stem}.txt", yolo_labels(stem))
    return root


def write_roboflow(root: Path) -> Path:
    folders = {"a": "train", "c": "train", "b": "valid"}
    write_pairs(root, {stem: (f"{split}/images", f"{split}/labels") for stem, split in folders.items()})
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"
    write_text(root / "README.roboflow.txt", "exported\n")
    write_text(root / "data.yaml", text)
    return root


def test_the_paths_of_ultralytics_and_roboflow_are_found_as_they_find_them(tmp_path: Path) -> None:
    require(read_format("yolo", write_roboflow(tmp_path / "roboflow")), SPLIT)
    assert "there is no ../test/images" in "".join(read_format("yolo", tmp_path / "roboflow").splits["train"].remarks)
    for number, entries in enumerate(
        (
            "train: images/train\nval: images/val\n",
            f"path: {tmp_path}/u1\ntrain: images/train\nval: images/val\n",
            "path: /content/other/machine\ntrain: /content/other/machine/images/train\nval: [images/val]\n",
            "train: train.txt\nval: val.txt\n",
            "",
        )
    ):
        root = write_ultralytics(tmp_path / f"u{number}", entries)
        write_text(root / "train.txt", "./images/train/a.png\n/home/me/images/train/c.png\n")
        write_text(root / "val.txt", "images/val/b.png\n")
        require(read_format("yolo", root), SPLIT)


@pytest.mark.parametrize(
    ("folders", "names", "stems"),
    [
        ({"a": ("images", "labels"), "b": ("images", "labels")}, "classes.txt", {"all": "ab"}),
        ({"a": ("images", "labels"), "b": ("images", "labels")}, "labels/classes.txt", {"all": "ab"}),
        ({"a": ("train", "train"), "b": ("valid", "valid")}, "train/_darknet.labels", {"train": "a", "val": "b"}),
        ({"a": ("obj_train_data", "obj_train_data")}, "obj.names", {"all": "a"}),
        (
            {"a": ("images/train2017", "labels/train2017"), "b": ("images/val2017", "labels/val2017")},
            "x.names",
            SPLIT | {"train": "a"},
        ),
        ({"a": ("", ""), "b": ("", "")}, "classes.txt", {"all": "ab"}),
    ],
)
def test_folders_without_data_yaml(
    folders: dict[str, tuple[str, str]], names: str, stems: dict[str, str], tmp_path: Path
) -> None:
    root = write_pairs(tmp_path, folders)
    write_text(root / names, "cat\ndog\n")
    assert find_format(root) == "yolo"
    data = read_format("yolo", root)
    require(data, stems)
    assert data.class_names == ("cat", "dog")


def test_classes_without_names_are_called_by_their_ids(tmp_path: Path) -> None:
    write_pairs(tmp_path, {"a": ("images", "labels")})
    data = read_format("yolo", tmp_path)
    assert data.class_names == ("0", "1")
    assert "data.class_names_file=FILE names them" in "".join(data.splits["all"].remarks)
    assert read_format("yolo", tmp_path, ["x", "y", "z"]).class_names == ("x", "y", "z")


def test_polygons_oriented_boxes_and_keypoints(tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path)
    lines = ["0 0.25 0.5 0.5 0.25 0.75 0.75", "1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5", "1 0.5 0.5 0.25 0.5"]
    write_text(root / "labels/val/b.txt", "\n".join(lines) + "\n\n")
    triangle, oriented, box = read_format("yolo", root).splits["val"].annotations
    assert triangle["segmentation"] == [[16, 24, 32, 12, 48, 36]]
    assert triangle["bbox"] == [16, 12, 32, 24]
    assert triangle["area"] == 288
    assert oriented["segmentation"] == [[32, 12, 48, 24, 32, 36, 16, 24]]
    assert oriented["bbox"] == [16, 12, 32, 24]
    assert (box["segmentation"], box["bbox"]) == ([], [24, 12, 16, 24])
    write_text(root / "data.yaml", "train: images/train\nval: images/val\nkpt_shape: [2, 3]\nnames: [cat, dog]\n")
    write_text(root / "labels/val/b.txt", "1 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 1\n")
    (pose,) = read_format("yolo", root).splits["val"].annotations
    assert (pose["segmentation"], pose["bbox"]) == ([], [24, 12, 16, 24])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2", "at least 5 tokens"),
        ("0 0.5 0.5 x 0.2", "could not convert"),
        ("cat 0.5 0.5 0.2 0.2", "invalid class id 'cat'"),
        ("0 0.5 0.5 nan 0.2", "finite"),
        ("0 0.5 0.5 -0.2 0.2", "non-negative"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "7 numbers after the class"),
        ("0 320 240 100 80", "found the coordinate 320, expected fractions"),
        ("7 0.5 0.5 0.2 0.2", "class 7, expected 0 to 1, the 2 classes of data.yaml"),
        ("0 1.5 0.5 0.2 0.2", "outside of its image"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(line: str, reason: str, tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path)
    path = write_text(root / "labels/train/c.txt", f"{yolo_labels('c')}{line}\n")
    message = refused("yolo", root)
    assert message.startswith(f"{path}, line 2: ")
    assert reason in message
    assert len(message.splitlines()) <= 6
    index = read_boxes(read_format("yolo", root).splits["train"], invalid="skip")
    assert index.num_objects.tolist() == [2, 1]
    assert "1 annotation is left out" in "".join(index.notes(of_training=True))


def test_missing_files_are_counted_or_refused(tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path)
    write_text(root / "labels/train/gone.txt", yolo_labels("a"))
    assert "1 label file has no image, and left out (gone.txt)" in read_format("yolo", root).splits["train"].remarks
    (root / "labels/val/b.txt").unlink()
    with pytest.raises(UserError, match="none of the 1 images has a label file"):
        read_format("yolo", root)
    write_text(root / "data.yaml", "train: images/trian\nval: images/val\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match=r"data.yaml: train: there is no images/trian"):
        read_format("yolo", root)


def test_an_image_in_both_splits_is_warned_of(tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path, "train: images/train\nval: images/train\n")
    assert any("2 images are in train and in val" in remark for remark in read_format("yolo", root).splits["train"].remarks)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path)
    write_text(root / "images/train/a.png", "no image")
    assert f"{root}/images/train/a.png: not an image" in refused("yolo", root)


def test_sizes_are_those_of_upright_images(tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(root / "images/val/b.png").copy()
    image.save(root / "images/val/b.png", exif=exif)
    val = read_format("yolo", root).splits["val"]
    assert (val.images[0]["width"], val.images[0]["height"]) == SIZE[::-1]
    assert val.is_upright
    assert "1 image has an EXIF orientation" in "".join(val.remarks)
    val = read_format("yolo", root, stored_orientation=True).splits["val"]
    assert (val.images[0]["width"], val.images[0]["height"]) == SIZE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [cat, cat]\ntrain: images/train\nval: images/val", "two classes have the name 'cat'"),
        ("names: {0: cat, 2: dog}\ntrain: images/train", r"found the ids 0, 2, expected 0 to 1"),
        ("names: 5\ntrain: images/train", "expected a list"),
        ("names: [cat", "not valid YAML"),
        ("- cat", "expected names, train and val"),
    ],
)
def test_a_wrong_data_yaml_is_named(text: str, reason: str, tmp_path: Path) -> None:
    root = write_ultralytics(tmp_path)
    write_text(root / "data.yaml", text)
    with pytest.raises(UserError, match=reason) as caught:
        read_format("yolo", root)
    assert "data.yaml" in str(caught.value)


side = st.integers(0, 5000)


@given(st.tuples(side, side), st.tuples(side, side), st.integers(1, 5000), st.integers(1, 5000))
def test_centered_fractions_come_back_within_half_a_pixel(
    xs: tuple[int, int], ys: tuple[int, int], width: int, height: int
) -> None:
    left, right = sorted(x % (width + 1) for x in xs)
    top, bottom = sorted(y % (height + 1) for y in ys)
    numbers = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    ((category, box),) = yolo_boxes(["3 " + " ".join(f"{number:.6f}" for number in numbers)], (width, height))
    assert category == 3
    assert box == pytest.approx([left, top, right, bottom], abs=0.5)


def test_what_supervision_writes_is_read_back(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import numpy as np
        import supervision as sv

    paths = {stem: str(write_image(tmp_path / f"source/{stem}.png")) for stem in BOXES}
    detections = {
        paths[stem]: sv.Detections(
            xyxy=np.array([box for _, box in objects], dtype=np.float32),
            class_id=np.array([("cat", "dog").index(name) for name, _ in objects]),
        )
        for stem, objects in BOXES.items()
    }
    written = sv.DetectionDataset(["cat", "dog"], list(paths.values()), detections)
    written.as_yolo(str(tmp_path / "yolo/images"), str(tmp_path / "yolo/labels"), str(tmp_path / "yolo/data.yaml"))
    written.as_pascal_voc(str(tmp_path / "voc/JPEGImages"), str(tmp_path / "voc/Annotations"))
    written.as_labelme(str(tmp_path / "labelme/images"), str(tmp_path / "labelme/annotations"))
    written.as_createml(str(tmp_path / "createml"), str(tmp_path / "createml/annotations.json"))
    written.as_coco(str(tmp_path / "coco"), str(tmp_path / "coco/annotations.json"))
    for kind in ("yolo", "voc", "labelme", "createml", "coco"):
        assert find_format(tmp_path / kind) == kind
        (boxes,) = read_format(kind, tmp_path / kind).splits.values()
        assert {stem: [name for name, _ in objects] for stem, objects in boxes_of(boxes).items()} == {
            stem: [name for name, _ in objects] for stem, objects in BOXES.items()
        }
        for stem, objects in boxes_of(boxes).items():
            for (_, found), (_, box) in zip(objects, BOXES[stem], strict=True):
                assert found == pytest.approx(box, abs=0.5), kind
