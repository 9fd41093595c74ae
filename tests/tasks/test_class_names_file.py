"""data.class_names_file in the tasks beside classification."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from stvit_cli import tasks
from stvit_cli.data.formats import read_format
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.detection.formats import forget, read_splits


def maps(folder: Path, *overrides: str) -> Recipe:
    words = ["task=segmentation", "data.kind=ade20k", f"data.dir={folder}", "data.class_names_file=names.txt", *overrides]
    return recipe_io.from_text("name: test", words)


def test_the_classes_of_label_maps_are_named_by_a_file_and_saved_as_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("0 road\n1 sky\n")
    recipe, notes = tasks.resolve(maps(tmp_path))
    assert (recipe.segmentation.class_names, recipe.data.class_names_file) == (("road", "sky"), None)
    assert notes == ["segmentation.class_names: 2 names from names.txt: road, sky"]
    assert tasks.resolve(recipe) == (recipe, [])
    assert recipe_io.from_text(recipe_io.dump(recipe)) == recipe


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.class_names_file: there is no file .*names\.txt"):
        tasks.resolve(maps(tmp_path))
    (tmp_path / "names.txt").write_text("road\nsky\n")
    with pytest.raises(UserError, match=r"names\.txt has 2 names, but there are 3 classes"):
        tasks.resolve(maps(tmp_path, "segmentation.label_values=[0,1,255]"))
    with pytest.raises(UserError, match=r"data\.class_names_file: found names\.txt beside segmentation\.class_names"):
        maps(tmp_path, "segmentation.class_names=[a,b]")
    with pytest.raises(UserError, match=r"data\.class_names_file: found names\.txt, but the classes of data\.kind coco"):
        recipe_io.from_text("{task: detection, data: {kind: coco, class_names_file: names.txt}}")


def test_yolo_s_ids_are_named_by_a_file(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / split / "1.png")
        (tmp_path / "labels" / split / "1.txt").write_text("1 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "mine.txt").write_text("cat\ndog\n")
    recipe = recipe_io.from_text(
        "{task: detection, data: {kind: yolo, class_names_file: mine.txt}, detection: {head: faster-rcnn}}",
        [f"data.dir={tmp_path}"],
    )
    forget()
    splits = read_splits(recipe.data, recipe.detection)
    assert splits.train is not None
    assert [category.name for category in splits.train.categories] == ["cat", "dog"]
    assert read_format("yolo", tmp_path).class_names == ("0", "1")
    forget()
