"""Recipes: every trap of reading one, what is said about it, and that what is written reads back the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from stvit_cli.errors import UserError
from stvit_cli.recipe import FREE_ON_RESUME, Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.error_messages import dotted_keys
from stvit_cli.recipe.yaml import flow, parse


def complaint(text: str, *overrides: str) -> str:
    """Return what is said about a recipe that must be refused."""
    with pytest.raises(UserError) as caught:
        recipe_io.from_text(text, overrides, source="mine.yaml")
    message = str(caught.value)
    assert len(message.splitlines()) <= 6
    assert not any(word in message for word in ("pydantic", "Input should", "type=", "validation error"))
    return message


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-4", 0.0005),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("True", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("'5e-4'", "5e-4"),
        ("-.inf", float("-inf")),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    data, _ = parse(f"key: {written}", "mine.yaml")
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        "on",
        "5e-4",
        "010",
        "",
        "null",
        "~",
        "a\nb",
        "true",
        "x: y",
        "# c",
        "@a",
        "é",
        "-",
        "1:30",
        " a ",
        "\u2028",
        "😀",
        "a,b",
        "'",
        '"',
        1e-06,
        0.0005,
        1.0,
        1e22,
        3,
        None,
        True,
        [1, 2.5],
        {"stvit-s": 0.1},
    ],
)
def test_what_is_written_reads_back_the_same(value: object) -> None:
    data, _ = parse(f"key: {flow(value)}", "mine.yaml")
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim:\n  lr: 1\n  lr: 2", "mine.yaml: line 3, column 3: the key optim.lr is there twice, first in line 2"),
        ("{optim: {lr: 1}, optim: {}}", "the key optim is there twice"),
        ("data: &d\n  dir: x", "line 1, column 7: anchors and aliases"),
        ("data: *d", "anchors and aliases"),
        ("name: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system is not read"),
        ("optim: !mine {lr: 1}", "the tag !mine is not read"),
        ("optim:\n\tlr: 1", "line 2, column 1: a tab; YAML is indented with spaces.\n  lr: 1"),
        ("optim: [1, 2", "line 1, column 13: this is not YAML"),
        ("optim: lr: 1", "this is not YAML (mapping values are not allowed here).\n  optim: lr: 1"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("1: 2", "a key must be text"),
        ("[a]: 2", "a key must be text"),
        ("name: a\x07", "line 1 holds a character that YAML does not allow (code 7)"),
        ("[" * 3000, "nested too deeply"),
        (f"train: {{seed: {'9' * 5000}}}", "too many digits"),
        ("", "found nothing, expected a recipe"),
        ("# only a comment\n", "found nothing, expected a recipe"),
        ("- optim", "found a list, expected a recipe"),
        ("optim", "found a single value, expected a recipe"),
    ],
)
def test_text_that_is_no_recipe(text: str, said: str) -> None:
    assert said in complaint(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: {lr: fast}", "mine.yaml: line 1, optim.lr: found fast (text), expected a number (above 0)"),
        ("optim: {lr: '5e-4'}", "optim.lr: found '5e-4' (text), expected a number (above 0)"),
        ("optim: {lr: true}", "optim.lr: found true (true or false), expected a number"),
        ("optim: {lr: 0}", "optim.lr: found 0 (a whole number), expected a number (above 0)"),
        ("optim: {lr: .nan}", "optim.lr: found .nan (a number), expected a number"),
        ("optim: {lr: 1e999}", "optim.lr: found .inf (a number), expected a number"),
        ("optim: {lr: }", "optim.lr: found nothing (null), expected a number"),
        ("schedule: {epochs: '3'}", "schedule.epochs: found '3' (text), expected a whole number (above 0)"),
        ("schedule: {epochs: 3.0}", "schedule.epochs: found 3.0 (a number), expected a whole number"),
        ("schedule: {epochs: true}", "schedule.epochs: found true (true or false), expected a whole number"),
        ("train: {compile: 1}", "train.compile: found 1 (a whole number), expected true or false"),
        ("train: {compile: on}", "train.compile: found on (text), expected true or false"),
        ("train: {precision: half}", "train.precision: found half (text), expected one of fp32, bf16, fp16"),
        ("train: {batch_size_per_device: 0}", "found 0 (a whole number), expected a whole number (above 0) or auto"),
        ("data: {dir: 3}", "data.dir: found 3 (a whole number), expected text or null"),
        ("data: {image_size: 31}", "data.image_size: found 31 (a whole number), expected a whole number (32 or more)"),
        ("data: {image_size: [224, 224]}", "found [224, 224] (a list), expected a whole number"),
        ("model: {grid_sizes: [8, 4, 1]}", "expected a list of 4, each a whole number (above 0) or null"),
        ("model: {drop_path_rate: {stvit-s: 2}}", "model.drop_path_rate: found {stvit-s: 2} (a mapping), expected"),
        ("augment: {crop_scale: [0.1, 2]}", "found [0.1, 2] (a list), expected a list of 2, each a number from 0 to 1"),
        ("optim: 3", "optim: found 3 (a whole number), expected keys below it: lr,"),
        ("name: [a]", "name: found [a] (a list), expected text"),
        ("optim:\n  warmup_epochs: 3", "optim.warmup_epochs: there is no such key. Did you mean 'schedule.warmup_epochs'?"),
        ("optim: {learning_rate: 3}", "optim.learning_rate: there is no such key."),
        ("lr: 3", "lr: there is no such key. Did you mean 'optim.lr'?"),
        ("modle: {name: stvit-s}", "modle: there is no such key. Did you mean 'model.name'?"),
        ("<<: {a: 1}", "<<: there is no such key."),
    ],
)
def test_values_that_do_not_fit(text: str, said: str) -> None:
    assert said in complaint(text)


NBSP = "\u00a0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim:\n  lr: 0,001", "line 2, optim.lr: found '0,001' (text), expected a number (above 0); write 0.001"),
        ("optim: {betas: ['0,9', '0,99']}", "each a number (0 or more, below 1); write [0.9, 0.99]"),
        ("optim: {betas: [0,9, 0,99]}", "found [0, 9, 0, 99] (a list), expected a list of 2, each a number"),
        ("optim: {betas: [0,9, 0,99]}", "; decimals are written with a point (0.5)"),
        ("optim: {lr: '5e-4'}", "; write 5e-4"),
        ("optim: {lr: 1e\u22124}", "; write 1e-4"),
        ("schedule:\n  epochs: 1,000", "expected a whole number (above 0); write 1000"),
        (f"schedule:\n  epochs: 1{NBSP}000", "expected a whole number (above 0); write 1000"),
        ("train:\n  compile: yes", "expected true or false; write true"),
        (f"optim:\n  lr: 0.001{NBSP}", "mine.yaml: line 2, column 12: a no-break space (U+00A0); write an ordinary space"),
        (f"optim:\n  lr: 0.001{NBSP}# fast", "line 2, column 12: a no-break space (U+00A0)"),
        (f"optim:\n  lr:{NBSP}0.001", "line 2, column 6: a no-break space (U+00A0)"),
        (f"optim:\n{NBSP} lr: 0.001", "line 2, column 1: a no-break space (U+00A0)"),
        (f"optim:{NBSP}\n  lr: 0.001", "line 1, column 7 holds a no-break space (U+00A0)"),
        ("optim:\n  lr: \u200b0.001", "line 2, column 7: a zero width space (U+200B)"),
        (
            "model:\n  name: \u201cstvit-s\u201d",
            "line 2, column 9: curly quotes: \u201cstvit-s\u201d; write stvit-s, or straight",
        ),
        ("\u2018model\u2019:\n  name: stvit-s", "line 1, column 1: curly quotes"),
        ("segmentation: {class_names: [\u201ca\u201d, b]}", "column 30: curly quotes: \u201ca\u201d; write a"),
        ("description: \u201ca: b\u201d", "line 1, column 14 holds a curly quote \u201c; write straight ones"),
    ],
)
def test_the_typography_of_other_programs_is_named_with_what_to_write(text: str, said: str) -> None:
    assert said in complaint(text)


@pytest.mark.parametrize(
    "text", ["The paper\u2019s", "\u201cBest\u201d of 3", "the dogs\u2019", f"a{NBSP}; b", "'\u201cx\u201d'"]
)
def test_typography_inside_text_stays(text: str) -> None:
    assert recipe_io.from_text(f"description: {text}").description == text.strip("'")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=0,001", "optim.lr: found '0,001' (text), expected a number (above 0); write 0.001"),
        (f"optim.lr={NBSP}0.001", "optim.lr=: line 1, column 1: a no-break space (U+00A0)"),
        ("model.name=\u201cstvit-s\u201d", "model.name=: line 1, column 1: curly quotes: \u201cstvit-s\u201d; write stvit-s"),
        ("\u201coptim.lr=0.001\u201d", "curly quotes or odd spaces in a key; write optim.lr=0.001"),
        ("data.mean=[0,485, 0,456, 0,406]", "found 6 values, expected 3 (model.in_chans); decimals are written with a point"),
    ],
)
def test_the_typography_of_overrides_is_named_too(override: str, said: str) -> None:
    assert said in complaint("{}", override)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data.mean=[123.675, 116.28, 103.53]"],
            "data.mean: found [123.675, 116.28, 103.53], on the scale of 0 to 255; expected that of 0 to 1: "
            "write [0.485, 0.456, 0.406]",
        ),
        (["data.std=[58.395, 57.12, 57.375]"], "data.std: found [58.395, 57.12, 57.375], on the scale of 0 to 255; expected"),
        (["data.std=[58.395, 57.12, 57.375]"], "write [0.229, 0.224, 0.225]"),
        (["data.mean=[104, 117, 124]", "data.std=[1, 1, 1]"], "write [0.003922, 0.003922, 0.003922]"),
    ],
)
def test_mean_and_std_of_bytes_are_refused_with_what_to_write(overrides: list[str], said: str) -> None:
    assert said in complaint("{}", *overrides)


def test_mean_and_std_that_leave_the_image_as_it_is_are_taken() -> None:
    recipe = recipe_io.from_text("{}", ["data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"])
    assert recipe.data.std == (1, 1, 1)
    assert recipe_io.from_text("{}", ["data.mean=[0.5, 1, 0]", "data.std=[0.003922, 0.5, 1]"]).data.mean == (0.5, 1, 0)


def test_all_problems_are_told_at_once_and_the_file_s_come_with_their_lines() -> None:
    said = complaint("optim:\n  lr: fast\n  eps: 0\nfoo: 1", "train.seed=x").splitlines()
    assert said[0] == "mine.yaml: 4 problems"
    assert said[1] == "  line 2, optim.lr: found fast (text), expected a number (above 0)"
    places = {line.split(":")[0].strip() for line in said[1:]}
    assert places == {"line 2, optim.lr", "line 3, optim.eps", "line 4, foo", "train.seed"}


def test_many_problems_stay_within_six_lines() -> None:
    many = "{" + ", ".join(f"key{n}: 1" for n in range(20)) + "}"
    assert complaint(many).splitlines()[0] == "mine.yaml: 20 problems (the first 4)"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule.warmup_epochs=300", "schedule.warmup_epochs: found 300, expected fewer than schedule.epochs (300)"),
        ("model.in_chans=1", "data.mean: found 3 values, expected 1 (model.in_chans)"),
        ("data.std=[0.2, 0, 0.2]", "data.std: found [0.2, 0.0, 0.2], expected numbers above 0"),
        ("augment.crop_scale=[0.5, 0.1]", "augment.crop_scale: found [0.5, 0.1]"),
        ("augment.crop_ratio=[0, 1]", "augment.crop_ratio: found [0.0, 1.0]"),
        ("schedule.min_lr=1", "schedule.min_lr: found 1, expected at most the peak learning rate (0.001)"),
        ("model.drop_path_rate={stvit-b: 0.1}", "model.drop_path_rate: found rates for stvit-b, expected one for stvit-s"),
    ],
)
def test_values_that_do_not_go_together(override: str, said: str) -> None:
    assert said in complaint("{}", override)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optim.lr"], "Found 'optim.lr', expected key=value"),
        (["lr=3"], "There is no key 'lr' in a recipe. Did you mean 'optim.lr'?"),
        (["optim.lrr=3"], "There is no key 'optim.lrr' in a recipe. Did you mean 'optim.lr'?"),
        (["kind=cosine"], "Did you mean 'data.kind', 'loss.kind', 'distill.kind' or 'schedule.kind'?"),
        (["optim=3"], "optim is a section; set a key of it, such as optim.lr=..."),
        (["optim.lr=1", "optim.lr=2"], "optim.lr is given twice"),
        (["optim.lr=[1"], "optim.lr=: line 1"),
        (["optim.lr=x"], "mine.yaml: optim.lr: found x (text), expected a number"),
        (["=3"], "There is no key '' in a recipe."),
    ],
)
def test_overrides_that_are_wrong(overrides: list[str], said: str) -> None:
    assert said in complaint("{}", *overrides)


@pytest.mark.parametrize(("task", "suggested"), [("classification", False), ("segmentation", True)])
def test_no_key_of_another_task_is_suggested(task: str, suggested: bool) -> None:
    for said in (complaint(f"task: {task}", "class_names=[a]"), complaint(f"task: {task}\nclass_names: [a]")):
        assert ("Did you mean 'segmentation.class_names'?" in said) is suggested


def test_overrides_are_read_as_the_file_is_and_stand_above_it() -> None:
    text = "optim: {lr: 1, eps: 1e-3}"
    recipe = recipe_io.from_text(text, ["optim.lr=5e-4", "data.dir=a b", "model.grid_sizes=[4,2,1,1]", "train.ema_decay="])
    assert (recipe.optim.lr, recipe.optim.eps, recipe.data.dir) == (5e-4, 1e-3, "a b")
    assert recipe.model.grid_sizes == (4, 2, 1, 1)
    assert recipe.train.ema_decay is None


def test_an_override_does_not_hide_what_is_wrong_with_its_section() -> None:
    assert "optim: found 3" in complaint("optim: 3", "optim.lr=1")


def test_an_empty_section_has_its_defaults() -> None:
    assert recipe_io.from_text("optim:\ntrain: {seed: 3}").optim == Recipe().optim


def test_the_drop_path_rate_is_the_model_s_own() -> None:
    text = "model: {drop_path_rate: {stvit-s: 0.1, stvit-b: 0.4}}"
    assert recipe_io.from_text(text).drop_path_rate == 0.1
    assert recipe_io.from_text(text, ["model.name=stvit-b"]).drop_path_rate == 0.4
    assert recipe_io.from_text("model: {drop_path_rate: 0.2}").drop_path_rate == 0.2


def test_the_rate_is_scaled_only_where_that_is_asked_for() -> None:
    assert recipe_io.from_text("{}", ["train.global_batch_size=512"]).peak_lr == 1e-3
    assert recipe_io.from_text("{}", ["train.global_batch_size=512", "optim.scale_lr_from=1024"]).peak_lr == 5e-4


@pytest.mark.parametrize("explain", [False, True])
def test_a_written_recipe_reads_back_equal(explain: bool) -> None:
    for path in recipe_io.list_recipes():
        recipe = recipe_io.load(path.stem)
        assert recipe_io.from_text(recipe_io.dump(recipe, explain=explain)) == recipe
        assert recipe_io.from_text(recipe_io.dump(recipe, only_changes=True)) == recipe
    assert recipe_io.dump(Recipe(), only_changes=True) == "{}\n"


def test_only_what_differs_is_written() -> None:
    recipe = recipe_io.from_text("{}", ["optim.lr=5e-4", "model.drop_path_rate={stvit-s: 0.1}"])
    assert recipe_io.dump(recipe, only_changes=True) == "model:\n  drop_path_rate: {stvit-s: 0.1}\noptim:\n  lr: 0.0005\n"


SECTIONS_OF = {
    "classification": {"loss", "distill"},
    "detection": {"detection", "shapes"},
    "segmentation": {"segmentation", "shapes"},
}
EXAMPLES = {"classification": "deit300", "detection": "coco-mask-rcnn-1x", "segmentation": "shapes-upernet"}


@pytest.mark.parametrize("task", SECTIONS_OF)
def test_every_key_of_the_task_is_explained_and_no_other(task: str) -> None:
    explained = recipe_io.dump(recipe_io.load(EXAMPLES[task]), explain=True)
    others = set().union(*SECTIONS_OF.values()) - SECTIONS_OF[task]
    own = [key for key in dotted_keys() if key.partition(".")[0] not in others]
    assert explained.count("  # ") + explained.count("\n# ") + explained.startswith("# ") == len(own)
    assert {line[:-1] for line in explained.splitlines() if line[0] not in " #" and line.endswith(":")} & others == set()


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("deit300", "segmentation.window=512", "segmentation.window: belongs to task segmentation, but task is classification"),
        ("deit300", "shapes.num_val=5", "shapes.num_val: belongs to task detection or segmentation, but task is classification"),
        ("shapes-upernet", "detection.head=cascade-mask-rcnn", "detection.head: belongs to task detection, but task is segm"),
        ("shapes-mask-rcnn", "segmentation.window=512", "segmentation.window: belongs to task segmentation, but task is det"),
    ],
)
def test_a_key_of_another_task_is_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_io.load(name, [override])
    assert str(caught.value).startswith(f"{name}: {said}")


def test_the_section_of_another_task_is_named_with_its_line() -> None:
    said = complaint("data:\n  kind: imagefolder\ndetection:\n  channels: 8\n  fc_dim: 8\n")
    assert said.startswith("mine.yaml: line 4, detection.channels: belongs to task detection, but task is classification")
    assert said.endswith(" (and 1 more of detection)")


def test_a_recipe_that_an_earlier_version_wrote_in_full_is_read() -> None:
    """All sections were written then, whatever the task, with the defaults of that version or with keys that did nothing."""
    recipe = recipe_io.load("deit300")
    sections = "detection:\n  channels: 8\nsegmentation:\n  reduce_zero_label: true\n  window: 512\nshapes:\n  num_val: 3\n"
    assert recipe_io.from_text(recipe_io.dump(recipe) + sections) == recipe
    with pytest.raises(UserError, match=r"segmentation\.window: belongs to task segmentation"):
        recipe_io.from_text(recipe_io.dump(recipe) + sections, ["segmentation.window=512"])


def test_every_key_is_explained() -> None:
    explained = recipe_io.dump(Recipe(), explain=True)
    assert "  # Peak learning rate, after warmup. A number (above 0).\n  lr: 0.001\n" in explained
    unexplained = [
        f"{name}.{key}"
        for name, section in Recipe.model_fields.items()
        if hasattr(section.default, "model_fields_set")
        for key, field in type(section.default).model_fields.items()
        if not field.description
    ]
    assert unexplained == []


def test_the_hash_stands_for_the_settings() -> None:
    recipe = recipe_io.from_text("{}")
    assert recipe_io.recipe_hash(recipe) == recipe_io.recipe_hash(recipe_io.from_text("optim: {lr: 1e-3}", name="other"))
    assert recipe_io.recipe_hash(recipe) == recipe_io.recipe_hash(recipe_io.from_text("{}", ["data.dir=elsewhere"]))
    assert recipe_io.recipe_hash(recipe) != recipe_io.recipe_hash(recipe_io.from_text("{}", ["train.seed=1"]))


def test_keys_that_came_later_leave_the_hash_of_a_recipe_as_it_was() -> None:
    """Computed by version 0.2.0; a new key with its default trains what that version trained."""
    settings = "{train: {seed: 5}, optim: {lr: 1e-4}, augment: {mixup: 0.5}}"
    assert recipe_io.recipe_hash(recipe_io.from_text(settings)) == "548b896570ee"
    assert recipe_io.recipe_hash(recipe_io.from_text(settings, ["augment.vflip=0.5"])) != "548b896570ee"


def test_the_difference_names_what_decides_what_is_learned() -> None:
    old = recipe_io.from_text("{}")
    new = recipe_io.from_text("{}", ["optim.lr=5e-4", "data.num_workers=0", "data.dir=x", "model.grid_sizes=[4,2,1,1]"])
    assert [str(change) for change in recipe_io.difference(old, new)] == [
        "model.grid_sizes: null -> [4, 2, 1, 1]",
        "optim.lr: 0.001 -> 0.0005",
    ]
    assert set(dotted_keys()) >= FREE_ON_RESUME


def test_a_recipe_is_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {lr: 5e-4}\n")
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbfoptim: {lr: 5e-4}\r\n")
    monkeypatch.chdir(tmp_path)
    assert recipe_io.load("quickstart").name == "quickstart"
    assert recipe_io.load("mine.yaml").name == "mine"
    assert recipe_io.load(tmp_path / "bom.yml").optim.lr == 5e-4


def test_a_name_in_the_file_stays() -> None:
    assert recipe_io.from_text("name: deit300", name="recipe").name == "deit300"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quikstart", "There is no recipe named 'quikstart'. Did you mean 'quickstart'?\nShipped: "),
        ("mine.yaml", "There is no recipe file mine.yaml."),
        ("./quickstart.yaml", "There is no recipe file quickstart.yaml. Did you mean 'quickstart'?"),
        ("folder.yaml", "folder.yaml is a folder"),
        ("latin.yaml", "latin.yaml is not UTF-8 text (byte 9)"),
        ("large.yaml", "large.yaml is larger than a megabyte"),
        ("loop.yaml", "There is no recipe file loop.yaml"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    Path("latin.yaml").write_bytes("name: caf\u00e9".encode("latin-1"))
    Path("large.yaml").write_bytes(b"#" * 1_000_001)
    Path("loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(UserError) as caught:
        recipe_io.load(name)
    assert said in str(caught.value)


def test_channel_means_in_bytes_of_an_old_run_are_kept_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {mean: [123.0, 117.0, 104.0], std: [58.0, 57.0, 57.0]}\n")
    with pytest.raises(UserError, match="on the scale of 0 to 255"):
        recipe_io.load(file)
    (tmp_path / "environment.json").write_text("{}")  # now it is the recipe of a run
    assert recipe_io.load(file).data.mean == (123.0, 117.0, 104.0)
    warning = f"{file}: data.mean: found [123.0, 117.0, 104.0], on the scale of 0 to 255; kept, as the model was trained"
    assert warning in caplog.text
