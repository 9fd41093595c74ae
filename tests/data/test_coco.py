"""COCO's layout: read as it is meant, oddities and all, and refused in words where it is something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from stvit_cli.data.coco import CocoImages, DetectionTrainSet, decode_mask, encode_mask, flip, ground_truth
from stvit_cli.data.coco_index import read_coco
from stvit_cli.data.sampling import SampleKey, TrainBatches
from stvit_cli.errors import UserError
from stvit_cli.recipe import DataSection, DetectionSection, ShapesSection
from stvit_cli.tasks.detection.data import build_detection

Content = dict[str, Any]
SQUARE = [[10, 5, 20, 5, 20, 15, 10, 15]]


@pytest.fixture
def content() -> Content:
    """Two categories with a gap; an image with an object, a crowd and a box without area; one with nothing."""
    crowd = {"size": [30, 40], "counts": [0, 30, 1170]}
    return {
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [
            {"id": 70, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 80, "file_name": "b.png", "height": 40, "width": 20},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 70,
                "category_id": 9,
                "bbox": [10, 5, 10, 10],
                "segmentation": SQUARE,
                "iscrowd": 0,
                "area": 100,
            },
            {"id": 2, "image_id": 70, "category_id": 3, "bbox": [0, 0, 1, 30], "segmentation": crowd, "iscrowd": 1, "area": 30},
            {"id": 3, "image_id": 70, "category_id": 3, "bbox": [5, 5, 0, 9], "segmentation": SQUARE, "iscrowd": 0, "area": 0},
        ],
    }


Writer = Callable[[Content], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Write an annotation file, and the images that it names."""

    def write_tree(content: Content) -> Path:
        for image in content["images"]:
            side = (image.get("width", 8), image.get("height", 8))
            Image.new("RGB", side, "grey").save(tmp_path / image["file_name"])
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return path

    return write_tree


def test_ids_with_gaps_become_labels_in_the_order_of_the_ids(content: Content, write: Writer, tmp_path: Path) -> None:
    index = read_coco(write(content), tmp_path)
    assert [(category.id, category.name) for category in index.categories] == [(3, "cat"), (9, "dog")]
    assert [entry["label"] for entry in index.objects(0)] == [2]


def test_crowds_and_boxes_without_area_do_not_train(content: Content, write: Writer, tmp_path: Path) -> None:
    index = read_coco(write(content), tmp_path)
    assert [entry["id"] for entry in index.objects(0)] == [1]
    assert index.objects(1) == []
    assert index.num_objects.tolist() == [1, 0]
    targets = CocoImages(index).targets(1)
    assert targets["boxes"].shape == (0, 4)
    assert targets["masks"].shape == (0, 40, 20)
    assert targets["labels"].shape == (0,)


def test_a_box_is_cut_off_at_the_edge(content: Content, write: Writer, tmp_path: Path) -> None:
    content["annotations"][0]["bbox"] = [-5, 20, 20, 30]
    assert CocoImages(read_coco(write(content), tmp_path)).targets(0)["boxes"].tolist() == [[0, 20, 15, 30]]


def test_polygons_and_both_run_length_codes_are_one_mask(content: Content, write: Writer, tmp_path: Path) -> None:
    expected = np.zeros((30, 40), dtype=np.uint8)
    expected[5:15, 10:20] = 1
    runs = np.flatnonzero(np.diff(expected.flatten(order="F"), prepend=0, append=0))
    counts = np.diff(np.concatenate([[0], runs, [expected.size]])).tolist()
    as_text = encode_mask(expected.astype(bool))
    assert rle.area(as_text) == 100
    for segmentation in (SQUARE, {"size": [30, 40], "counts": counts}, as_text):
        assert np.array_equal(decode_mask(segmentation, 30, 40), expected)
        content["annotations"][0]["segmentation"] = segmentation
        assert CocoImages(read_coco(write(content), tmp_path)).targets(0)["masks"][0].tolist() == expected.tolist()


def test_a_mirrored_image_keeps_its_objects_and_twice_is_once(content: Content, write: Writer, tmp_path: Path) -> None:
    image, targets = torch.rand(3, 30, 40), CocoImages(read_coco(write(content), tmp_path)).targets(0)
    mirrored, moved = flip(image, targets)
    assert moved["boxes"].tolist() == [[20, 5, 30, 15]]
    rows, columns = torch.where(moved["masks"][0] > 0)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (20, 30, 5, 15)
    again, back = flip(mirrored, moved)
    assert torch.equal(again, image)
    assert all(torch.equal(back[key], targets[key]) for key in targets)


def test_an_item_is_a_function_of_its_key(content: Content, write: Writer, tmp_path: Path) -> None:
    images = CocoImages(read_coco(write(content), tmp_path))
    train_set = DetectionTrainSet(images, 0.5, seed=1, unreadable="stop")
    lefts = []
    for epoch in range(20):
        first, second = (train_set[SampleKey(0, epoch, 0)]["targets"]["boxes"] for _ in range(2))
        assert torch.equal(first, second)
        lefts.append(first[0, 0].item())
    assert set(lefts) == {10, 20}


def test_images_of_like_shape_share_a_micro_batch() -> None:
    """Which samples a step has is the same; neighbours by shape go together, and processes see what accumulation sees."""
    aspect_ratios = np.random.RandomState(0).uniform(0.5, 2, 40)

    def steps(micro: int, world: int, aspect_ratios: Any) -> list[list[list[int]]]:
        settings = {"seed": 3, "repeats": 1, "global_batch_size": 8, "micro_batch_size": micro, "start_step": 0, "num_steps": 5}
        ranks = [list(TrainBatches(40, rank=r, world_size=world, aspect_ratios=aspect_ratios, **settings)) for r in range(world)]
        batches = [batch for row in zip(*ranks, strict=True) for batch in row]
        count = 8 // micro
        return [[[key.index for key in batch] for batch in batches[s * count : (s + 1) * count]] for s in range(5)]

    plain, alike = steps(2, 1, None), steps(2, 1, aspect_ratios)
    assert [sorted(chain(*step)) for step in plain] == [sorted(chain(*step)) for step in alike]
    for step in alike:
        figures = aspect_ratios[list(chain(*step))]
        assert (np.diff(figures) >= 0).all()
    assert steps(2, 2, aspect_ratios) == alike


def _refused(path: Path, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_coco(path, folder)
    lines = str(caught.value).splitlines()
    assert 1 <= len(lines) <= 6
    return str(caught.value)


Change = Callable[[Content], Any]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("images"), "no list of objects 'images'"),
        (lambda c: c.update(annotations={}), "no list of objects 'annotations'"),
        (lambda c: c["annotations"][0].update(category_id=4), "annotation 1 is of category 4, which is not in the file"),
        (lambda c: c["annotations"][0].update(category_id=[4]), "annotation 1 is of category"),
        (lambda c: c["annotations"][0].update(image_id=7), "annotation 1 is of image 7, which is not in the file"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "bbox is [1, 2, 3]"),
        (lambda c: c["annotations"][0].update(bbox=[50, 2, 3, 3]), "is outside of its image, which is 40 wide"),
        (lambda c: c["annotations"][0].update(segmentation="none"), "segmentation is 'none' (text)"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "expected polygons"),
        (lambda c: c["annotations"][0].update(segmentation=[[x + 90 for x in SQUARE[0]]]), "its mask is outside of its image"),
        (lambda c: c["annotations"][1]["segmentation"].update(size=[40, 30]), "its mask has size [40, 30]"),
        (lambda c: c["categories"].clear(), "the list of categories is empty"),
        (lambda c: c["categories"].append({"id": 5, "name": "dog"}), "2 categories have the name 'dog'"),
        (lambda c: c["categories"][0].pop("name"), "expected an id (a whole number) and a name"),
        (lambda c: c["images"][0].pop("height"), "image 70 needs a file_name, and a height and a width"),
        (lambda c: c["images"][1].update(id=70), "each needs one of its own"),
        (lambda c: c["images"].clear(), "the list of images is empty"),
    ],
)
def test_a_file_that_contradicts_itself(content: Content, write: Writer, tmp_path: Path, change: Change, said: str) -> None:
    change(content)
    if "images" not in content:
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        assert said in _refused(tmp_path / "annotations.json", tmp_path)
    else:
        assert said in _refused(write(content), tmp_path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text('{"images": [')
    assert "not a JSON file" in _refused(path, tmp_path)
    path.write_text("[1, 2]")
    assert "no list of objects 'images'" in _refused(path, tmp_path)
    assert "Did you mean 'instances.json'?" in _refused(tmp_path / "instance.json", tmp_path)


def test_images_that_are_not_there(content: Content, write: Writer, tmp_path: Path) -> None:
    path = write(content)
    (tmp_path / "b.png").unlink()
    assert "1 of its 2 images are not in" in _refused(path, tmp_path)
    assert "b.png" in _refused(path, tmp_path)
    assert "cannot be listed" in _refused(path, tmp_path / "nowhere")


def test_a_image_of_another_size_than_the_file_says(content: Content, write: Writer, tmp_path: Path) -> None:
    index = read_coco(write(content), tmp_path)
    Image.new("RGB", (30, 40)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"30 x 40 pixels, not 40 x 30"):
        CocoImages(index).open(0)


@pytest.mark.parametrize("counts", [[1, 2], [], "", "P0", [1200, -1, 1], "PPYo0"])
def test_a_mask_whose_runs_do_not_fill_the_image(content: Content, write: Writer, tmp_path: Path, counts: Any) -> None:
    content["annotations"][0]["segmentation"] = {"size": [30, 40], "counts": counts}
    assert "annotation 1: the runs of its mask come to" in _refused(write(content), tmp_path)


def _build(tmp_path: Path, **settings: Any) -> Any:
    section = DetectionSection(train_json="t.json", val_json="v.json", train_images=".", val_images=".", **settings)
    return build_detection(DataSection(kind="coco", dir=str(tmp_path)), section, ShapesSection(), 0.5, 0)


def test_empty_images_train_only_where_that_is_asked_for(content: Content, write: Writer, tmp_path: Path) -> None:
    path = write(content)
    for name in ("t.json", "v.json"):
        (tmp_path / name).write_text(path.read_text())
    assert len(_build(tmp_path).train_set) == 1
    assert len(_build(tmp_path, keep_empty=True).train_set) == 2
    data = _build(tmp_path)
    assert len(data.val_set) == 2, "an evaluation looks at every image"
    assert data.class_names == ("cat", "dog")
    content["categories"][0]["name"] = "wolf"
    (tmp_path / "v.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="are not those of"):
        _build(tmp_path)
    content["annotations"] = content["annotations"][1:]
    for name in ("t.json", "v.json"):
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match="no object in it can be trained on"):
        _build(tmp_path)


def test_what_a_file_leaves_out_is_found_for_the_evaluation(content: Content, write: Writer) -> None:
    for annotation in content["annotations"]:
        annotation.pop("area")
    content["annotations"][0].pop("iscrowd")
    content["annotations"][0]["id"] = 0  # which pycocotools would take for no annotation at all
    truth = ground_truth(read_coco(write(content), None))
    assert [(a["id"], a["area"], a["iscrowd"]) for a in truth.anns.values()] == [(1, 100, 0), (2, 30, 1), (3, 100, 0)]
