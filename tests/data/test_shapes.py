"""Synthetic shapes: exact, reproducible, and the same images in two layouts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from stvit_cli.data.shapes import (
    CATEGORY_IDS,
    LABEL_NAMES,
    MIN_VISIBLE,
    SHAPE_NAMES,
    box_of,
    draw_image,
    shapes_tree,
    write_ade20k_tree,
    write_coco_tree,
    write_table_tree,
)
from stvit_cli.data.table import TableOptions, find_table_images
from stvit_cli.errors import UserError


def test_a_scene_follows_from_its_seed_split_and_number() -> None:
    scene, same = draw_image(3, "train", 5, 96), draw_image(3, "train", 5, 96)
    assert np.array_equal(scene.image, same.image)
    assert scene.labels == same.labels
    others = (draw_image(4, "train", 5, 96), draw_image(3, "val", 5, 96), draw_image(3, "train", 6, 96))
    assert all(not np.array_equal(scene.image, other.image) for other in others if other.image.shape == scene.image.shape)


def test_scenes_have_every_figure_several_sizes_and_overlaps() -> None:
    scenes = [draw_image(0, "train", index, 128) for index in range(60)]
    assert set(Counter(label for scene in scenes for label in scene.labels)) == set(range(len(SHAPE_NAMES)))
    assert len({scene.image.shape for scene in scenes}) > 20
    sizes = [max(box_of(mask)[2:]) for scene in scenes for mask in scene.masks]
    assert min(sizes) < 20
    assert max(sizes) > 50
    boxes = [[box_of(mask) for mask in scene.masks] for scene in scenes]
    assert any(_overlap(a, b) for row in boxes for i, a in enumerate(row) for b in row[:i])


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def test_masks_boxes_and_label_maps_agree() -> None:
    for index in range(20):
        scene = draw_image(1, "val", index, 100)
        labels = scene.label_map()
        assert labels.shape == scene.image.shape[:2]
        assert max(labels.shape) == 100
        assert sum(mask.astype(int) for mask in scene.masks).max() == 1  # every pixel has one owner
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            assert (labels[mask] == LABEL_NAMES.index(SHAPE_NAMES[label]) + 1).all()
            left, top, width, height = box_of(mask)
            inside = mask[top : top + height, left : left + width]
            assert inside.sum() == mask.sum()
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
        assert (labels == 1).sum() == labels.size - sum(int(mask.sum()) for mask in scene.masks)


def test_a_hidden_figure_keeps_its_greater_part() -> None:
    # A figure that covers more than half of another is not drawn, so a visible part is at least half a whole figure; the least
    # figure there can be has the area of the smallest star.
    assert MIN_VISIBLE == 0.5
    areas = [int(mask.sum()) for index in range(60) for mask in draw_image(0, "train", index, 128).masks]
    assert min(areas) >= 0.5 * 1.5 * (0.08 * 96 - 1) ** 2 * 0.8


def test_the_coco_tree_is_what_pycocotools_reads(tmp_path: Path) -> None:
    write_coco_tree(tmp_path / "tree", (3, 2), 80, seed=7)
    coco = COCO(tmp_path / "tree" / "annotations" / "instances_val2017.json")
    assert coco.getCatIds() == list(CATEGORY_IDS)
    assert len(coco.getImgIds()) == 2
    for index, number in enumerate(sorted(coco.getImgIds())):
        scene = draw_image(7, "val", index, 80)
        image = Image.open(tmp_path / "tree" / "val2017" / coco.imgs[number]["file_name"])
        assert np.array_equal(np.asarray(image), scene.image)
        found = coco.loadAnns(coco.getAnnIds(number))
        assert [annotation["category_id"] for annotation in found] == [CATEGORY_IDS[label] for label in scene.labels]
        for annotation, mask in zip(found, scene.masks, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert tuple(annotation["bbox"]) == box_of(mask)
            assert annotation["area"] == mask.sum()


def test_the_ade20k_tree_holds_the_same_scenes(tmp_path: Path) -> None:
    write_ade20k_tree(tmp_path, (2, 1), 80, seed=7)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert len(names) == 6
    assert "annotations/validation/000000.png" in names
    scene = draw_image(7, "train", 1, 80)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "training" / "000001.png")), scene.image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "annotations" / "training" / "000001.png")), scene.label_map())


def test_a_tree_is_written_once(tmp_path: Path) -> None:
    tree = shapes_tree("coco", (2, 1), 64, 0, str(tmp_path / "new"))
    stamp = (tree / "annotations" / "instances_train2017.json").stat().st_mtime_ns
    assert shapes_tree("coco", (2, 1), 64, 0, str(tmp_path / "new")) == tree
    assert (tree / "annotations" / "instances_train2017.json").stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "new").iterdir()] == [tree.name]  # nothing is left beside it
    assert len(json.loads((tree / "annotations" / "instances_train2017.json").read_text())["images"]) == 2
    assert shapes_tree("coco", (2, 1), 64, 1, str(tmp_path / "new")) != tree


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shapes_tree("ade20k", (1, 1), 64, 0).parent == tmp_path / "stvit" / "shapes"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        shapes_tree("coco", (1, 1), 64, 0, str(tmp_path / "file"))


@pytest.mark.parametrize("layout", ["coco", "ade20k", "table"])
def test_a_tree_that_lost_an_image_is_made_whole_again(tmp_path: Path, layout: str) -> None:
    def contents(tree: Path) -> dict[str, bytes]:
        return {str(path.relative_to(tree)): path.read_bytes() for path in sorted(tree.rglob("*")) if path.is_file()}

    tree = shapes_tree(layout, (3, 2), 64, 0, str(tmp_path))
    whole = contents(tree)
    for number, name in enumerate(sorted(whole)[::2]):
        if number % 2:
            (tree / name).unlink()
        else:
            (tree / name).write_bytes(b"")  # as a power cut leaves it
    assert contents(shapes_tree(layout, (3, 2), 64, 0, str(tmp_path))) == whole
    assert [path.name for path in tmp_path.iterdir()] == [tree.name]


def test_a_classifier_reads_the_table_of_what_is_in_each_image(tmp_path: Path) -> None:
    write_table_tree(tmp_path / "tree", (5, 3), 48, seed=2)
    train, val = find_table_images(TableOptions(dir=str(tmp_path / "tree"), multi_label=True))
    assert (len(train), len(val)) == (5, 3)
    assert set(train.class_names) <= set(SHAPE_NAMES)
    for index in range(3):
        drawn = draw_image(2, "val", index, 48)
        target = val.target(index)
        assert {val.class_names[label] for label in np.flatnonzero(target)} == {SHAPE_NAMES[label] for label in drawn.labels}
        assert np.array_equal(np.asarray(val.open(index)), drawn.image)
