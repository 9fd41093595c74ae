"""Data sets of other tools: what they hold is found whole, in order, and what cannot be read is named by file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.label_files import (
    BOXES,
    CLASSES,
    SIZE,
    WRITERS,
    boxes_of,
    createml_json,
    cvat_xml,
    labelme_json,
    refused,
    require,
    voc_xml,
    write_image,
    write_text,
    write_voc,
    yolo_labels,
)

from stvit_cli.data.coco_index import read_boxes
from stvit_cli.data.formats import find_format, read_format
from stvit_cli.errors import UserError


@pytest.mark.parametrize("kind", WRITERS)
def test_each_format_is_found_and_read_with_its_split(kind: str, tmp_path: Path) -> None:
    root = WRITERS[kind](tmp_path)
    assert find_format(root) == kind
    data = read_format(kind, root)
    require(data, {"train": "ac", "val": "b"})
    assert data.class_names == (("dog", "cat") if kind == "cvat" else ("cat", "dog"))
    for boxes in data.splits.values():
        assert len(read_boxes(boxes)) == len(boxes.images)  # the checked index takes them


def test_ids_of_images_differ_between_the_splits(tmp_path: Path) -> None:
    splits = read_format("voc", write_voc(tmp_path)).splits
    assert [[image["id"] for image in boxes.images] for boxes in splits.values()] == [[1, 2], [3]]


def beside(root: Path, ending: str, content: Any) -> Path:
    """Write images and a file beside each."""
    for stem in BOXES:
        write_image(root / f"{stem}.png")
        write_text(root / f"{stem}{ending}", content(stem))
    return root


@pytest.mark.parametrize(("kind", "ending", "content"), [("voc", ".xml", voc_xml), ("labelme", ".json", labelme_json)])
def test_files_beside_their_images_are_one_set(kind: str, ending: str, content: Any, tmp_path: Path) -> None:
    data = read_format(kind, beside(tmp_path, ending, content))
    require(data, {"all": "abc"})


def test_an_image_without_annotations_is_kept_as_empty_and_counted(tmp_path: Path) -> None:
    for kind, write in WRITERS.items():
        root = write(tmp_path / kind)
        first = next(path for path in sorted(root.rglob("a.png")))
        write_image(first.with_name("new.png"))
        if kind == "voc":
            write_text(root / "ImageSets/Main/train.txt", "a\nc\nnew\n")
        train = read_format(kind, root).splits["train"]
        assert boxes_of(train)["new"] == []
        if kind != "voc":
            assert any("new.png" in remark and "no " in remark for remark in train.remarks), kind


def test_a_missing_image_is_named_with_the_file_that_needs_it(tmp_path: Path) -> None:
    for kind in ("voc", "labelme", "createml", "cvat"):
        root = WRITERS[kind](tmp_path / kind)
        next(root.rglob("c.png")).unlink()
        message = refused(kind, root)
        assert "there is no" in message, kind
        assert "c" in message.splitlines()[0], kind
        skipped = read_boxes(read_format(kind, root).splits["train"], invalid="skip")
        assert len(skipped) == 1, kind
        assert "1 on an image that is missing" in "".join(skipped.notes(of_training=True)), kind


def test_a_box_beyond_its_image_is_named_by_file(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    path = root / "Annotations/c.xml"
    path.write_text(path.read_text().replace("<xmin>3</xmin>", "<xmin>93</xmin>").replace("<xmax>50</xmax>", "<xmax>99</xmax>"))
    message = refused("voc", root)
    assert message.startswith(f"{path}, object 1: the box")
    assert "outside of its image" in message


def test_voc_counts_pixels_from_1_and_some_tools_from_0(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "from 1")
    require(read_format("voc", root), {"train": "ac", "val": "b"})
    for stem in BOXES:
        write_text(root / f"Annotations/{stem}.xml", voc_xml(stem, first=0).replace("<xmin>2<", "<xmin>0<"))
    train = read_format("voc", root).splits["train"]
    assert boxes_of(train)["c"][0][1][0] == 0
    assert boxes_of(train)["a"][0][1] == (8, 6, 40, 30)
    assert "pixels count from 0" in train.remarks[0]


def test_difficult_objects_of_voc_are_ignored_as_crowds_are(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    write_text(root / "Annotations/c.xml", voc_xml("c", difficult=1))
    index = read_boxes(read_format("voc", root).splits["train"])
    assert index.num_objects.tolist() == [2, 0]
    assert "1 object is difficult" in "".join(index.notes(of_training=True))


def test_voc_polygons_stay_polygons(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    polygon = "<polygon><x1>5</x1><y1>5</y1><x2>31.5</x2><y2>5</y2><x3>20</x3><y3>25</y3></polygon></object>"
    text = (root / "Annotations/b.xml").read_text().replace("</object>", polygon)
    write_text(root / "Annotations/b.xml", text)
    (entry,) = read_format("voc", root).splits["val"].annotations
    assert entry["segmentation"] == [[4, 4, 30.5, 4, 19, 24]]
    assert entry["area"] == pytest.approx(26.5 * 20 / 2)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for kind, name in (("voc", "Annotations/a.xml"), ("labelme", "train/a.json"), ("cvat", "train.xml")):
        root = WRITERS[kind](tmp_path / kind)
        path = root / name
        path.write_text(path.read_text()[:200])
        with pytest.raises(UserError, match=name):
            read_format(kind, root)


def test_xml_made_to_exhaust_the_memory_is_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    write_text(root / "Annotations/a.xml", bomb)
    with pytest.raises(UserError, match="defines entities"):
        read_format("voc", root)


def test_labelme_groups_circles_and_what_is_left_out(tmp_path: Path) -> None:
    import json

    root = WRITERS["labelme"](tmp_path)
    path = root / "train/a.json"
    content = json.loads(path.read_text())
    triangle = {"label": "cat", "points": [[1, 1], [9, 1], [5, 7]], "group_id": 3, "shape_type": "polygon"}
    content["shapes"] = [
        triangle,
        {"label": "dog", "points": [[30, 20], [34, 23]], "group_id": None, "shape_type": "circle"},
        {**triangle, "points": [[11, 11], [19, 11], [15, 17]]},
        {"label": "cat", "points": [[5, 5]], "group_id": None, "shape_type": "point"},
    ]
    path.write_text(json.dumps(content))
    train = read_format("labelme", root).splits["train"]
    grouped, circle, *_ = train.annotations
    assert grouped["segmentation"] == [[1, 1, 9, 1, 5, 7], [11, 11, 19, 11, 15, 17]]
    assert grouped["bbox"] == [1, 1, 18, 16]
    assert circle["bbox"] == pytest.approx([25, 15, 10, 10], abs=0.1)
    assert [fault.reason for fault in train.faults] == ["of shape point"]


def test_labelme_paths_of_windows_lead_to_the_image(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    write_text(tmp_path / "labels/a.json", labelme_json("a", "..\\images\\a.png"))
    require(read_format("labelme", tmp_path), {"all": "a"})


def test_cvat_rotated_boxes_masks_and_videos(tmp_path: Path) -> None:
    root = WRITERS["cvat"](tmp_path)
    shapes = (
        '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90"/>'
        '<mask label="dog" rle="1, 2, 1, 2" left="5" top="6" width="3" height="2"/>'
        '<polygon label="cat" points="1,2;30,2;30,40"/><points label="cat" points="1,2"/>'
    )
    path = root / "validation.xml"
    path.write_text(path.read_text().replace("</image>", f"{shapes}</image>"))
    val = read_format("cvat", root).splits["val"]
    _, rotated, mask, polygon = val.annotations
    assert rotated["bbox"] == pytest.approx([15, 5, 10, 20])
    assert len(rotated["segmentation"][0]) == 8
    assert polygon["segmentation"] == [[1, 2, 30, 2, 30, 40]]
    assert [fault.reason for fault in val.faults] == ["of shape points"]
    from stvit_cli.data.coco import decode_mask

    pixels = decode_mask(mask["segmentation"], SIZE[1], SIZE[0])
    assert {(int(y), int(x)) for y, x in zip(*pixels.nonzero(), strict=True)} == {(6, 6), (6, 7), (7, 6), (7, 7)}
    path.write_text(path.read_text().replace("<image", "<track/><image", 1))
    with pytest.raises(UserError, match="of a video"):
        read_format("cvat", root)


def test_cvat_and_roboflow_exports_of_other_formats_are_recognized(tmp_path: Path) -> None:
    for stem in "ab":
        write_image(tmp_path / f"obj_train_data/{stem}.png")
        write_text(tmp_path / f"obj_train_data/{stem}.txt", yolo_labels(stem))
    write_text(tmp_path / "obj.names", "cat\ndog\n")
    write_text(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write_text(tmp_path / "train.txt", "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")
    require(read_format("cvat", tmp_path), {"train": "ab"})
    require(read_format("roboflow", WRITERS["createml"](tmp_path / "robo")), {"train": "ac", "val": "b"})


def test_coco_exports_of_roboflow_keep_their_ids(tmp_path: Path) -> None:
    import json

    for split, stem in (("train", "a"), ("valid", "b")):
        write_image(tmp_path / split / f"{stem}.png")
        content = {
            "images": [{"id": 7, "file_name": f"{stem}.png", "width": 64, "height": 48}],
            "categories": [
                {"id": 0, "name": "animals", "supercategory": "none"},
                {"id": 1, "name": "cat"},
                {"id": 2, "name": "dog"},
            ],
            "annotations": [
                {"id": 3, "image_id": 7, "category_id": 1, "bbox": [8, 6, 32, 24], "area": 768, "segmentation": [], "iscrowd": 0}
            ],
        }
        write_text(tmp_path / split / "_annotations.coco.json", json.dumps(content))
    data = read_format("roboflow", tmp_path)
    assert (data.kind, list(data.splits)) == ("coco", ["train", "val"])
    assert data.class_names == ("animals", "cat", "dog")
    assert data.splits["val"].images[0]["file_name"] == "valid/b.png"


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    for kind in ("voc", "labelme", "createml", "cvat"):
        root = WRITERS[kind](tmp_path / kind)
        with pytest.raises(UserError, match=r"class 'dog' is none of the 1 classes of data.class_names_file") as caught:
            read_boxes(read_format(kind, root, ["cat"]).splits["train"])
        assert "1 of an unknown class" in str(caught.value)


def test_the_order_of_given_names_is_that_of_the_ids(tmp_path: Path) -> None:
    data = read_format("createml", WRITERS["createml"](tmp_path), ["dog", "bird", "cat"])
    assert [(entry["id"], entry["name"]) for entry in data.splits["train"].categories] == [(1, "dog"), (2, "bird"), (3, "cat")]
    require(data, {"train": "ac", "val": "b"})


def test_nothing_annotated_is_said(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="no class"):
        read_format("voc", tmp_path)
    with pytest.raises(UserError, match="no export of Roboflow"):
        read_format("roboflow", tmp_path)


def test_helpers_are_those_of_one_data_set() -> None:
    assert sorted({name for objects in BOXES.values() for name, _ in objects}) == CLASSES
    assert createml_json("a").count("label") == cvat_xml("a").count("<box") == 2
