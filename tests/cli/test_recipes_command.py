"""``stvit recipes list/show/copy/check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stvit_cli.recipe import io as recipe_io


def test_list_names_every_recipe(stvit) -> None:
    names = [path.stem for path in recipe_io.list_recipes()]
    assert {"quickstart", "deit300", "finetune384"} <= set(names)
    assert [line.split()[0] for line in stvit("recipes", "list").out.splitlines()[1:]] == names


def test_list_as_json_is_alone_on_standard_output(stvit) -> None:
    ended = stvit("recipes", "list", "--json", "-")
    rows = json.loads(ended.out)
    assert [row["name"] for row in rows] == [path.stem for path in recipe_io.list_recipes()]
    assert all(row["description"] for row in rows)
    assert "quickstart" in ended.err


def test_show_prints_the_file_as_it_is(stvit) -> None:
    assert stvit("recipes", "show", "deit300").out == recipe_io.find("deit300").read_text()


def test_show_prints_a_file_with_the_line_ends_of_windows(stvit, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbf# mine\r\noptim: {lr: 5e-4}\r\n")
    assert stvit("recipes", "show", tmp_path / "mine.yaml").out == "# mine\noptim: {lr: 5e-4}\n"


def test_show_prints_what_a_run_would_see(stvit) -> None:
    out = stvit("recipes", "show", "deit300", "optim.lr=5e-4").out
    assert recipe_io.from_text(out) == recipe_io.load("deit300", ["optim.lr=5e-4"])
    assert recipe_io.from_text(stvit("recipes", "show", "deit300", "--full").out) == recipe_io.load("deit300")


def test_copy_then_check(stvit, tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    copied = stvit("recipes", "copy", "quickstart", target)
    assert copied.code == 0
    assert f"stvit train --recipe {target}" in copied.err
    assert copied.out == ""
    assert target.read_text() == recipe_io.find("quickstart").read_text()
    checked = stvit("recipes", "check", target)
    assert checked.code == 0
    assert f"{target} is valid" in checked.out


def test_copy_into_a_folder_keeps_the_name(stvit, tmp_path: Path) -> None:
    assert stvit("recipes", "copy", "quickstart", tmp_path).code == 0
    assert (tmp_path / "quickstart.yaml").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("there.yaml", "exists; choose another name"),
        ("mine", "did you mean"),
        ("missing/mine.yaml", "cannot be written: No such file"),
    ],
)
def test_copy_overwrites_nothing(stvit, tmp_path: Path, target: str, said: str) -> None:
    (tmp_path / "there.yaml").write_text("mine")
    ended = stvit("recipes", "copy", "quickstart", tmp_path / target)
    assert ended.code == 2
    assert said in ended.err
    assert (tmp_path / "there.yaml").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


def test_check_knows_the_models(stvit) -> None:
    ended = stvit("recipes", "check", "quickstart", "model.name=stvit-nan")
    assert ended.code == 2
    assert "model.name: there is no model 'stvit-nan'. Did you mean 'stvit-nano'?" in ended.err


def test_check_tells_what_is_wrong(stvit, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim:\n  lr: fast\n  lrr: 3\n")
    ended = stvit("recipes", "check", tmp_path / "mine.yaml")
    assert ended.code == 2
    assert ended.out == ""
    assert "line 2, optim.lr: found fast (text), expected a number (above 0)" in ended.err
    assert "line 3, optim.lrr: there is no such key. Did you mean 'optim.lr'?" in ended.err


@pytest.mark.parametrize("name", ["own-images", "own-boxes", "own-masks", "own-maps"])
def test_recipes_whose_model_is_chosen_later_are_valid(stvit, name: str) -> None:
    assert stvit("recipes", "check", name).code == 0
    refused = stvit("profile", "--recipe", name)
    assert refused.code == 2
    assert "model.name=stvit-s" in refused.err


def test_check_finds_a_misspelt_optimizer(stvit) -> None:
    assert stvit("recipes", "check", "quickstart", "optim.name=lion").code == 0
    ended = stvit("recipes", "check", "quickstart", "optim.name=loin")
    assert (ended.code, "Did you mean 'lion'?" in ended.err) == (2, True)
