"""Images with label maps: every layout and encoding that is read, every fault that is named, and the numbers in between."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stvit_cli.data.label_maps import open_label_map
from stvit_cli.data.sampling import SampleKey
from stvit_cli.data.segmentation import SegmentationData
from stvit_cli.data.shapes import LABEL_NAMES, write_ade20k_tree
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.segmentation.data import build_segmentation, build_segmentation_eval_set

NAMES = "[background, circle, square, triangle, star]"


def recipe(root: Path | None, *words: str) -> Recipe:
    where = [f"data.dir={root}"] if root is not None else []
    section = f"{{class_names: {NAMES}, reduce_zero_label: true}}"
    text = f"{{task: segmentation, data: {{kind: ade20k, image_size: 64}}, segmentation: {section}}}"
    return recipe_io.from_text(text, [*where, *words])


def complaint(root: Path | None, *words: str, read: bool = False) -> str:
    def build() -> None:
        data = build_segmentation(recipe(root, *words))
        if read:
            data.train_set[SampleKey(0, 0, 0)]

    with pytest.raises(UserError) as caught:
        build()
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade")
    write_ade20k_tree(root, (4, 3), 72, seed=1)
    return root


Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Make a tree of one black image of 40 x 30 in both splits, with the given label map."""

    def make(label_map: Image.Image | None, name: str = "a.png") -> Path:
        for split in ("training", "validation"):
            images, maps = tmp_path / "images" / split, tmp_path / "annotations" / split
            images.mkdir(parents=True)
            maps.mkdir(parents=True)
            Image.new("RGB", (40, 30)).save(images / "a.jpg")
            if label_map is not None:
                label_map.save(maps / name)
        return tmp_path

    return make


def numbers(*rows: tuple[int, int], dtype: type = np.uint8) -> np.ndarray:
    """A map of 30 x 40 that is 1 but for the first pixels, given as (column, number) of row 0."""
    label_map = np.ones((30, 40), dtype=dtype)
    for column, number in rows:
        label_map[0, column] = number
    return label_map


def test_a_tree_in_ade20ks_layout(scenes: Path) -> None:
    data = build_segmentation(recipe(scenes))
    assert (len(data.train_set), len(data.val_set)) == (4, 3)
    assert data.train_set.images.path(0).endswith("images/training/000000.png")
    item = data.val_set[2]
    with Image.open(scenes / "annotations" / "validation" / "000002.png") as label_map:
        raw = np.array(label_map).astype(np.int64)
    assert torch.equal(item["target"], torch.from_numpy(raw) - 1)
    assert min(item["images"][0].shape[2:]) == 512
    assert data.train_set.images.class_names == LABEL_NAMES


def test_a_training_item_is_a_function_of_its_key(scenes: Path) -> None:
    first, second = (build_segmentation(recipe(scenes)).train_set for _ in range(2))
    key = SampleKey(1, 3, 0)
    second[SampleKey(0, 0, 0)]
    item, same = first[key], second[key]
    assert torch.equal(item["image"], same["image"])
    assert torch.equal(item["target"], same["target"])
    assert item["image"].shape == (3, 64, 64)
    assert item["target"].shape == (64, 64)
    assert not torch.equal(item["image"], first[SampleKey(1, 4, 0)]["image"])


def test_zero_is_ignored_and_never_wraps_around(tree: Tree) -> None:
    root = tree(Image.fromarray(numbers((0, 0), (1, 5), (2, 255))))
    target = build_segmentation_eval_set(recipe(root))[0]["target"]
    assert target[0, :4].tolist() == [-1, 4, -1, 0]
    kept = ("segmentation.reduce_zero_label=false", "segmentation.class_names=[a, b, c, d, e, f]")
    assert build_segmentation_eval_set(recipe(root, *kept))[0]["target"][0, :4].tolist() == [0, 5, -1, 1]


def test_another_number_can_be_the_ignored_one(tree: Tree) -> None:
    root = tree(Image.fromarray(numbers((0, 7))))
    target = build_segmentation_eval_set(recipe(root, "segmentation.ignore_index=7"))[0]["target"]
    assert target[0, :2].tolist() == [-1, 0]


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_grey_and_palette_and_16_bits(mode: str, tmp_path: Path) -> None:
    values = numbers((0, 0)) if mode == "1" else numbers((0, 3), (1, 200))
    label_map = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values)
    if mode == "P":
        label_map.putpalette([255, 0, 0, 0, 255, 0] * 128)
    if mode == "1":
        label_map = Image.fromarray(values.astype(bool))
    label_map.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as written:
        assert written.mode == mode
    assert np.array_equal(open_label_map(tmp_path / "map.png"), values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_map_of_equal_channels_is_one_of_numbers(mode: str, tmp_path: Path) -> None:
    values = numbers((0, 3), (1, 200))
    Image.fromarray(values.astype(np.uint8)).convert(mode).save(tmp_path / "map.png")
    assert np.array_equal(open_label_map(tmp_path / "map.png"), values)


def test_any_two_folders_and_names(tmp_path: Path) -> None:
    for kind, name in (("left", "x_left.png"), ("fine", "x_fine_ids.png")):
        folder = tmp_path / kind / "town"
        folder.mkdir(parents=True)
        (Image.new("RGB", (40, 30)) if kind == "left" else Image.fromarray(numbers())).save(folder / name)
    keys = [f"segmentation.{split}_{what}" for split in ("train", "val") for what in ("images", "maps")]
    words = [f"{key}={'left' if key.endswith('images') else 'fine'}" for key in keys]
    suffixes = ("segmentation.image_suffix=_left.png", "segmentation.map_suffix=_fine_ids.png")
    data = build_segmentation(recipe(tmp_path, *words, *suffixes))
    assert len(data.train_set) == 1
    assert (data.val_set[0]["target"] == 0).all()
    assert "have no label map here: expected town/x_left.png" in complaint(tmp_path, *words)


def test_scenes_are_drawn_where_the_recipe_asks_for_them(tmp_path: Path) -> None:
    words = ("data.kind=shapes", "shapes.num_train=3", "shapes.num_val=2", "data.image_size=96")
    data: SegmentationData = build_segmentation(recipe(tmp_path / "cache", *words))
    assert (len(data.train_set), len(data.val_set)) == (3, 2)
    assert max(data.val_set[0]["target"].shape) == 96


def test_no_folder(tmp_path: Path) -> None:
    assert "data.dir is not set" in complaint(None)
    (tmp_path / "ADE").mkdir()
    assert f"there is no folder {tmp_path / 'AED'}. Did you mean 'ADE'?" in complaint(tmp_path / "AED")
    assert "which has no folder images/training" in complaint(tmp_path / "ADE")


def test_no_images(tmp_path: Path) -> None:
    for folder in ("images/training", "annotations/training"):
        (tmp_path / folder).mkdir(parents=True)
    assert "no image in this folder; expected files such as *.jpg" in complaint(tmp_path)


def test_no_label_map(tree: Tree) -> None:
    message = complaint(tree(Image.fromarray(numbers()), name="a_labels.png"))
    assert "1 of 1 images have no label map here: expected a.png" in message
    assert "a.jpg" in message
    assert "Did you mean 'a_labels.png'?" in message


def test_sizes_that_differ(tree: Tree) -> None:
    message = complaint(tree(Image.new("L", (30, 40), 1)), read=True)
    assert "a.png: the label map has 30 x 40 pixels" in message
    assert "a.jpg 40 x 30" in message


def test_a_number_that_is_no_class(tree: Tree) -> None:
    root = tree(Image.fromarray(numbers((3, 6))))
    message = complaint(root, read=True)
    assert "annotations/training/a.png: the label map has 6 in row 0, column 3; expected 1 to 5" in message
    assert "or 0 and 255, which are ignored" in message
    words = ("segmentation.ignore_index=9", "segmentation.reduce_zero_label=false", "segmentation.class_names=[a, b, c]")
    message = complaint(root, *words, read=True)
    assert "has 6 in row 0, column 3; expected 0 to 2" in message
    assert "or 9, which are" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a PNG"),
        (b"no image", "not a PNG"),
        ("truncated", "cannot be read"),
        ("RGB", "a colour image (RGB), of 1 colours"),
    ],
)
def test_a_map_that_cannot_be_read(tree: Tree, content: bytes | str, said: str) -> None:
    noise = np.random.default_rng(0).integers(0, 5, (30, 40), dtype=np.uint8)
    root = tree(Image.new("RGB", (40, 30), (128, 64, 128)) if content == "RGB" else Image.fromarray(noise))
    path = root / "annotations" / "training" / "a.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    message = complaint(root, read=True)
    assert message.startswith(str(path))
    assert said in message


def test_a_image_that_cannot_be_read(tree: Tree) -> None:
    root = tree(Image.fromarray(numbers()))
    (root / "images" / "training" / "a.jpg").write_bytes(b"no image")
    assert "a.jpg: not an image in a known format" in complaint(root, read=True)


def test_a_image_that_cannot_be_decoded_is_skipped_where_the_recipe_says_so(scenes: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    bad = root / "images" / "training" / "000001.png"
    bad.write_bytes(b"no image")
    data = build_segmentation(recipe(root, "data.unreadable=skip"))
    item = data.train_set[SampleKey(1, 0, 0)]
    assert item["skipped"] == [str(bad)]
    assert item["index"] != 1


def _pairs(root: Path, count: int = 12) -> Path:
    """Images of three towns with their maps, in two folders, not divided."""
    for number in range(count):
        for folder, image in (("photos", Image.new("RGB", (40, 30))), ("maps", Image.fromarray(numbers()))):
            path = root / folder / f"town{number % 3}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


ONE_SET = ("segmentation.train_images=photos", "segmentation.train_maps=maps", "segmentation.val_images=null")


def test_of_pairs_without_a_split_a_fraction_is_held_out(tmp_path: Path) -> None:
    given = recipe(_pairs(tmp_path), *ONE_SET, "data.val_fraction=0.25")
    data = build_segmentation(given)
    train, val = data.train_set.images, data.val_set.images
    assert (len(train), len(val)) == (9, 3)
    assert not set(train.images) & set(val.images)
    assert [path.name for path in val.images] == [path.name for path in val.maps], "maps go with their images"
    assert train.notes == (f"{tmp_path / 'photos'} has no split: 3 of 12 images are held out for validation (25%).",)
    assert build_segmentation_eval_set(given).images.images == val.images
    assert len(build_segmentation_eval_set(given, whole=True)) == 12
    assert "data.val_fraction is 0" in complaint(tmp_path, *ONE_SET, "data.val_fraction=0")


def test_pairs_of_a_group_are_held_out_together(tmp_path: Path) -> None:
    data = build_segmentation(recipe(_pairs(tmp_path), *ONE_SET, "data.group_by='^([^/]+)/'"))
    towns = [{path.parent.name for path in part.images.images} for part in (data.train_set, data.val_set)]
    assert [len(found) for found in towns] == [2, 1]
    assert not towns[0] & towns[1]
    assert "is found in no path" in complaint(tmp_path, *ONE_SET, "data.group_by=patient")
    assert "has one group of images" in complaint(tmp_path, *ONE_SET, "data.group_by=png")
