"""Recipes based on others, and keys that were renamed: what a run sees, what is said, and where a value comes from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stvit_cli.cli.streams import log_to_stderr
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.inheritance import as_single_file


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(**texts: str) -> None:
    for name, text in texts.items():
        Path(f"{name}.yaml").write_text(text)


def refused(name: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe_io.load(name, overrides)
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


def test_the_file_stands_above_its_base_key_by_key() -> None:
    write(
        a="description: a\nname: first\noptim: {lr: 1e-2, eps: 1e-3}\ntrain:\n  seed: 3\n",
        b="base: a.yaml\noptim:\n  lr: 1e-4\ntrain:\n",
    )
    recipe = recipe_io.load("b.yaml")
    assert (recipe.optim.lr, recipe.optim.eps, recipe.train.seed) == (1e-4, 1e-3, 3)
    assert (recipe.name, recipe.description) == ("b", ""), "these belong to their own file"
    assert recipe_io.load("b.yaml", ["optim.lr=1"]).optim.lr == 1


def test_a_mapping_in_the_file_replaces_the_whole_one_of_its_base() -> None:
    write(
        a="model: {drop_path_rate: {stvit-s: 0.1, stvit-b: 0.4}}\n", b="base: a.yaml\nmodel: {drop_path_rate: {stvit-s: 0.2}}\n"
    )
    assert recipe_io.load("b.yaml").model.drop_path_rate == {"stvit-s": 0.2}


def test_a_base_is_a_shipped_recipe_or_a_path_from_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sub").mkdir()
    write(**{"top": "train: {seed: 5}\n", "sub/mine": "base: ../top.yaml\n", "quickstart": "base: quickstart\noptim: {lr: 1}\n"})
    monkeypatch.chdir(tmp_path / "sub")
    assert recipe_io.load(tmp_path / "sub" / "mine.yaml").train.seed == 5
    own = recipe_io.load(tmp_path / "quickstart.yaml")
    assert (own.optim.lr, own.model.name) == (1, "stvit-nano")


def test_a_run_of_an_earlier_version_may_be_a_base() -> None:
    write(
        run="task: detection\ndata: {kind: coco}\ndetection: {channels: 8}\nsegmentation: {window: 512}\nshapes:\n",
        b="base: run.yaml\n",
    )
    recipe, layers, _ = recipe_io.resolve("b.yaml")
    assert recipe.detection.channels == 8
    assert "segmentation" not in as_single_file(layers)


def test_what_a_run_keeps_is_resolved() -> None:
    write(a="train: {seed: 5}\n", b="base: a.yaml\noptim: {lr: 1e-4}\n")
    recipe = recipe_io.load("b.yaml")
    assert "base" not in recipe_io.dump(recipe)
    assert recipe_io.recipe_hash(recipe) == recipe_io.recipe_hash(recipe_io.from_text("{train: {seed: 5}, optim: {lr: 1e-4}}"))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"b": "base: b.yaml"}, "b.yaml: line 1, base: the recipes are based on each other in a circle: b.yaml -> b.yaml"),
        ({"b": "base: a.yaml", "a": "\nbase: ./b.yaml"}, "a.yaml: line 2, base: the recipes are based on each other in a circle"),
        ({"b": "name: x\nbase: gone.yaml"}, "b.yaml: line 2, base: There is no recipe file gone.yaml."),
        ({"b": "base: quikstart"}, "b.yaml: line 1, base: There is no recipe named 'quikstart'. Did you mean 'quickstart'?"),
        ({"b": "base: 3"}, "b.yaml: line 1, base: found 3, expected a shipped recipe's name or the path of a file"),
        ({"b": "base:"}, "b.yaml: line 1, base: found null, expected a shipped recipe's name"),
        ({"b": "base: a.yaml", "a": "[]"}, "a.yaml: found a list, expected a recipe"),
        ({"b": "base: a.yaml", "a": "optim:\n  lr: x"}, "b.yaml: line 2 of a.yaml, optim.lr: found x (text), expected a number"),
        ({"b": "base: a.yaml", "a": "optim:\n  lrr: 1"}, "b.yaml: line 2 of a.yaml, optim.lrr: there is no such key."),
        ({"b": "base: a.yaml\noptim: {lr: 1}", "a": "optim: 3"}, "line 1 of a.yaml, optim: found 3"),
        ({"b": "base: a.yaml\noptim:\n  lr: x", "a": "optim: {lr: 1}"}, "b.yaml: line 3, optim.lr: found x"),
        ({"b": "base: a.yaml", "a": "schedule:\n  warmup_epochs: 300"}, "line 2 of a.yaml, schedule.warmup_epochs: found 300"),
        ({"b": "base: c0.yaml"} | {f"c{n}": f"base: c{n + 1}.yaml" for n in range(9)}, "more than 4 recipes deep"),
    ],
)
def test_a_base_that_does_not_serve_is_named_with_file_and_line(texts: dict[str, str], said: str) -> None:
    write(**texts)
    assert said in refused("b.yaml").replace("./", "")


def test_a_base_is_no_override() -> None:
    assert "base is a key of recipe files" in refused("quickstart", "base=deit300")


@pytest.mark.parametrize("path", recipe_io.list_recipes(), ids=lambda path: path.stem)
def test_what_is_written_out_is_the_same_recipe(path: Path) -> None:
    recipe, layers, _ = recipe_io.resolve(path.stem)
    for show_origins in (False, True):
        assert recipe_io.from_text(as_single_file(layers, show_origins=show_origins), name=path.stem) == recipe


def test_what_is_written_out_survives_every_way_to_write_a_value() -> None:
    write(
        a="# head of a\ntask: segmentation\noptim: {lr: 1e-2, eps: 1e-3}  # flow\nsegmentation:\n  # above\n"
        "  class_names: [a,\n    'b # b', c]  # after\n  map_suffix: 'x # y'\n"
        '  image_suffix: |\n    t\n    # u\n\ndata:\n  kind: ade20k\n  dir: "a\n    b"\n',
        b="# head of b\n\nbase: a.yaml\ndata: {image_size: 64}\n",
    )
    recipe, layers, _ = recipe_io.resolve("b.yaml")
    text = as_single_file(layers)
    assert text.startswith("# head of b\n#\n# Written out; based on: b.yaml -> a.yaml\n")
    assert "head of a" not in text
    assert "  # above\n  class_names: [a," in text
    assert "# after" in text
    assert recipe_io.from_text(text, name="b") == recipe
    assert recipe_io.from_text(as_single_file(layers, show_origins=True), name="b") == recipe


def test_show_names_the_file_and_line_of_each_value(stvit) -> None:
    write(a="optim:\n  lr: 1e-2   # [P]\n", b="base: a.yaml\noptim:\n  eps: 1e-3\n")
    out = stvit("recipes", "show", "b.yaml").out
    assert "based on: b.yaml -> a.yaml\n" in out
    assert "  lr: 1e-2   # [P]  <- a.yaml:2\n  eps: 1e-3  # <- b.yaml:3\n" in out


def test_a_copy_works_elsewhere(stvit, tmp_path: Path) -> None:
    write(a="optim:\n  lr: 1e-2   # [P]\n", b="base: a.yaml\noptim:\n  eps: 1e-3\n")
    (tmp_path / "far").mkdir()
    assert stvit("recipes", "copy", "b.yaml", tmp_path / "far" / "mine.yaml").code == 0
    assert "  lr: 1e-2   # [P]\n" in (tmp_path / "far" / "mine.yaml").read_text()
    Path("a.yaml").unlink()
    assert recipe_io.load(tmp_path / "far" / "mine.yaml").optim == Recipe().optim.model_copy(update={"lr": 1e-2, "eps": 1e-3})


def test_check_names_the_base(stvit) -> None:
    assert "coco-mask-rcnn-3x-ms is valid, based on coco-mask-rcnn-1x." in stvit("recipes", "check", "coco-mask-rcnn-3x-ms").out


@pytest.fixture
def _renamed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(recipe_io.RENAMED, "optim.rate", "optim.lr")
    monkeypatch.setitem(recipe_io.RENAMED, "learning.seed", "train.seed")
    monkeypatch.setitem(recipe_io.RENAMED, "about", "description")
    monkeypatch.setitem(recipe_io.RENAMED_VALUES, "data.kind", {"folder": "imagefolder"})
    recipe_io.warn_once.cache_clear()
    with log_to_stderr():
        yield


OLD = "about: mine\noptim:\n  rate: 1e-2\nlearning: {seed: 3}\ndata: {kind: folder}\n"


@pytest.mark.usefixtures("_renamed")
def test_old_names_work_and_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    write(old=OLD)
    for _ in range(2):
        recipe = recipe_io.load("old.yaml")
    assert (recipe.optim.lr, recipe.train.seed, recipe.description, recipe.data.kind) == (1e-2, 3, "mine", "imagefolder")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Warning: old.yaml: optim.rate is called optim.lr now, learning.seed is called train.seed now, "
        "about is called description now, data.kind: folder is called imagefolder now."
    ]


@pytest.mark.usefixtures("_renamed")
def test_old_names_work_in_overrides_and_in_a_base(capsys: pytest.CaptureFixture[str]) -> None:
    write(old=OLD, new="base: old.yaml\noptim: {lr: 2}\n")
    assert recipe_io.load("new.yaml").optim.lr == 2
    assert recipe_io.load("new.yaml", ["optim.rate=3", "data.kind=folder"]).optim.lr == 3
    assert "Warning: optim.rate is called optim.lr now, data.kind: folder is called imagefolder now.\n" in capsys.readouterr().err
    write(new="base: old.yaml\noptim: {rate: x}\n")
    assert "new.yaml: line 2, optim.lr: found x (text)" in refused("new.yaml")


@pytest.mark.usefixtures("_renamed")
def test_one_key_under_two_names_is_refused() -> None:
    write(both="optim:\n  rate: 1\n  lr: 2\n", fine="optim: {rate: 1}\n")
    assert "both.yaml: optim.rate and optim.lr are one key (line 2 and line 3): it was renamed. Keep optim.lr." in refused(
        "both.yaml"
    )
    assert "optim.lr is given twice (optim.rate is its old name)" in refused("fine.yaml", "optim.lr=1", "optim.rate=2")
    assert recipe_io.load("fine.yaml", ["optim.lr=5"]).optim.lr == 5


@pytest.mark.usefixtures("_renamed")
def test_check_shows_what_was_renamed(stvit) -> None:
    write(old=OLD)
    ended = stvit("recipes", "check", "old.yaml")
    assert ended.code == 0
    assert "optim.rate is called optim.lr now" in ended.out
    assert "Warning: old.yaml: optim.rate is called optim.lr now" in ended.err


@pytest.mark.usefixtures("_renamed")
def test_the_recipe_of_a_run_with_old_names_is_read(tmp_path: Path) -> None:
    text = recipe_io.dump(recipe_io.from_text("{}", ["optim.lr=0.5"])).replace("  lr: 0.5", "  rate: 0.5")
    write(recipe=text)
    assert recipe_io.difference(recipe_io.load("recipe.yaml"), recipe_io.from_text("{}", ["optim.lr=0.5"])) == []
