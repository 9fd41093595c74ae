"""`stvit superpixels`: scenes, baselines with as many segments, seeds of one setting, files, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stvit_cli
from stvit_cli.analysis.associations.superpixels import boundaries, num_components
from stvit_cli.analysis.superpixels.measure import (
    CELLS,
    GRID,
    KINDS,
    SLIC,
    SLIC_ON_TOKENS,
    SUPER_TOKENS,
    SceneMeasures,
    input_size,
    layers_of,
    token_colors,
)
from stvit_cli.analysis.superpixels.result import SuperpixelResult
from stvit_cli.analysis.superpixels.scenes import synthetic_scenes
from stvit_cli.data.shapes import draw_image
from stvit_cli.models.weights.file import WeightsInfo, save_weights
from stvit_cli.recipe import io as recipe_io

INFO = WeightsInfo("stvit-nano", num_classes=2, image_size=64)
QUICK = {"num_scenes": 2, "scene_size": 48, "untrained": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two runs of a recipe that differ in the seed, and one of another image size."""
    root = tmp_path_factory.mktemp("runs")
    folders = []
    for name, words in (("a", ()), ("b", ("train.seed=7",)), ("c", ("data.image_size=48",))):
        folder = root / name
        folder.mkdir()
        recipe = recipe_io.load("quickstart", ["data.image_size=64", *words] if name != "c" else list(words))
        (folder / "recipe.yaml").write_text(recipe_io.dump(recipe))
        info = replace(INFO, image_size=recipe.data.image_size, recipe_hash=recipe_io.recipe_hash(recipe))
        save_weights(folder / "best.safetensors", untrained_nano(2), info)
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def measured(runs: list[Path]) -> SuperpixelResult:
    pytest.importorskip("skimage")
    return stvit_cli.superpixels(runs, **QUICK)


def untrained_nano(num_classes: int = 1000) -> torch.nn.Module:
    torch.manual_seed(0)
    return stvit_cli.create_model("stvit-nano", num_classes).eval()


def test_scenes_have_a_label_for_each_object_and_are_of_no_split() -> None:
    scenes = list(synthetic_scenes(3, 48))
    for index, scene in enumerate(scenes):
        drawn = draw_image(0, "test", index, 48)
        assert [int((scene.truth == number).sum()) for number in range(1, len(drawn.masks) + 1)] == [m.sum() for m in drawn.masks]
        for split in ("train", "val"):
            other = draw_image(0, split, index, 48).image
            assert other.shape != np.asarray(scene.image).shape or (other != np.asarray(scene.image)).any()


def test_the_input_has_complete_cells_and_the_size_of_the_evaluation() -> None:
    assert input_size((96, 72), INFO, 16) == (80, 64)  # 85 x 64
    settings = recipe_io.load("shapes-upernet", []).segmentation.model_dump_json()
    segmenter = replace(INFO, task="segmentation", settings=settings)
    assert input_size((72, 96), segmenter, 16) == (128, 160)  # max_size 160 x 160, not the crops' 96
    assert input_size((72, 96), segmenter, 32, image_size=64) == (64, 96)
    assert input_size((40, 40), replace(INFO, image_size=32), 16) == (32, 32)


def test_baselines_have_as_many_segments_and_the_tokens_of_the_layer() -> None:
    pytest.importorskip("skimage")
    (scene,) = synthetic_scenes(1, 96)
    measures = SceneMeasures(scene)
    layers, pixels = layers_of(untrained_nano(), scene.image, INFO, (96, 80))
    assert [layer.name for layer in layers] == ["stage1.block1", "stage2.block1", "stage2.block2"]
    for layer in layers:
        count = len(np.unique(layer.token_labels()))
        labels = {kind: measures.labels(kind, layer, pixels, count) for kind in KINDS}
        assert (labels[SUPER_TOKENS] == layer.label_map(scene.truth.shape)).all()
        assert len(np.unique(labels[CELLS])) == num_components(labels[CELLS]) == 6 * 5
        for kind in (GRID, SLIC, SLIC_ON_TOKENS):
            found = len(np.unique(labels[kind]))
            assert abs(found - count) <= (3 if kind == SLIC_ON_TOKENS else 2), (kind, found, count)  # 4 tokens a segment
            assert num_components(labels[kind]) == found
        # Borders of what is made of tokens lie between tokens, and nowhere else.
        columns = np.flatnonzero(np.diff(layer.grid.nearest(1, scene.truth.shape[1])))
        for kind in (SUPER_TOKENS, CELLS, SLIC_ON_TOKENS):
            between = np.flatnonzero((labels[kind][:, 1:] != labels[kind][:, :-1]).any(0))
            assert set(between) <= set(columns), kind
        assert boundaries(labels[SLIC]).mean() > 0


def test_token_colors_are_means_of_the_nearest_pixels() -> None:
    layers, pixels = layers_of(untrained_nano(), Image.new("RGB", (64, 64), "teal"), INFO, (64, 64))
    pixels = pixels.copy()
    pixels[:2, :2] = 9  # the first token lies on the first pixel, so it has two of four rows and columns
    colors = token_colors(layers[0].grid, pixels)
    assert colors.shape == (16, 16, 3)
    assert colors[0, 0].tolist() == [9, 9, 9]
    assert colors[0, 1].tolist() == colors[15, 15].tolist() == [0, 128, 128]


def test_runs_of_one_recipe_are_seeds_of_one_row(measured: SuperpixelResult, runs: list[Path]) -> None:
    assert [(setting.name, len(setting.models), setting.seeds) for setting in measured.settings] == [
        ("a", 2, (0, 7)),  # two settings of one recipe's name: named after their runs
        ("c", 1, (0,)),
    ]
    assert measured.row("a", "stage1.block1").values.shape == (2, 2, 6)
    assert measured.row("a", "stage1.block1", trained=False).values.shape == (1, 2, 6)
    table = measured.table()
    assert len(table) == 2 * 3 * (len(KINDS) + 1)  # settings, layers, and random weights without baselines
    assert {row[3] for row in table} == set(KINDS)
    assert sum("follow objects" in note or "of 3 metrics" in note for note in measured.notes()) == 6


def test_differences_are_those_of_the_rows(measured: SuperpixelResult) -> None:
    found = {(item["setting"], item["layer"], item["of"], item["minus"]): item for item in measured.differences()}
    assert len(found) == 2 * 3 * (1 + 2 * 4)
    own = measured.row("a", "stage2.block2")
    grid = measured.row("a", "stage2.block2", GRID)
    random = measured.row("a", "stage2.block2", trained=False)
    metric = "undersegmentation_error"
    change = found["a", "stage2.block2", "trained super tokens", "regular grid"][metric]["mean"]
    assert change == pytest.approx(own.of(metric).mean() - grid.of(metric).mean())
    change = found["a", "stage2.block2", "trained super tokens", "untrained super tokens"][metric]["mean"]
    assert change == pytest.approx(own.of(metric).mean() - random.of(metric).mean())


def test_random_weights_are_not_those_of_the_file_and_stay_the_same(runs: list[Path]) -> None:
    found = [stvit_cli.superpixels(runs[0], num_scenes=1, scene_size=48, untrained=2) for _ in range(2)]
    rows = [result.row("quickstart", "stage1.block1", trained=False).values for result in found]
    np.testing.assert_array_equal(*rows)
    assert (rows[0][0] != rows[0][1]).any()


def test_the_command_writes_table_json_and_plots(stvit, tmp_path: Path, runs: list[Path]) -> None:
    pytest.importorskip("skimage")
    words = ("--scenes", "2", "--scene-size", "48", "--untrained", "1", "--output", tmp_path / "out", "--json", "-")
    ended = stvit("superpixels", f"mine={runs[0]}", *words)
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"superpixels.json", "table.md", "plot.svg", "scenes.png"}
    printed, saved = json.loads(ended.out), json.loads((tmp_path / "out" / "superpixels.json").read_text())
    assert printed == saved
    assert saved["settings"][0]["name"] == "mine"
    assert saved["settings"][0]["recipe_hash"]
    assert {row["segmentation"] for row in saved["rows"]} == set(KINDS)
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in saved["rows"])
    assert (tmp_path / "out" / "table.md").read_text().count("mine, trained") == 3 * len(KINDS)
    with Image.open(tmp_path / "out" / "scenes.png") as image:
        assert image.width > 900


def test_without_scikit_image_slic_is_left_out(monkeypatch: pytest.MonkeyPatch, runs: list[Path]) -> None:
    monkeypatch.setattr("stvit_cli.analysis.superpixels.evaluate.importlib.util.find_spec", lambda name: None)
    found = stvit_cli.superpixels(runs[2], num_scenes=1, scene_size=48, untrained=0)
    assert {row.kind for row in found.rows} == {SUPER_TOKENS, CELLS, GRID}
    assert any("SLIC and connected parts are left out" in note for note in found.notes())
    assert {row[5] for row in found.table()} == {"-"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("no-such-run",), "no-such-run"),
        (("name=no-such-run",), "no-such-run"),
        (("GLOBAL",), "no super tokens to measure"),
        (("RUN", "--output", "FILE"), "cannot be written"),
        (("RUN", "--scenes", "0"), "--scenes"),
        (("one=RUN", "one=GLOBAL"), "not of the same model"),
    ],
)
def test_wrong_arguments_are_refused(stvit, tmp_path: Path, runs: list[Path], words: tuple[str, ...], expected: str) -> None:
    (tmp_path / "FILE").touch()
    without = {"grid_sizes": (1, 1, 1, 1)}
    save_weights(tmp_path / "GLOBAL", stvit_cli.create_model("stvit-nano", 2, **without), replace(INFO, **without))
    known = {"RUN": str(runs[0]), "GLOBAL": str(tmp_path / "GLOBAL"), "FILE": str(tmp_path / "FILE")}
    given = [re.sub("RUN|GLOBAL|FILE", lambda match: known[match[0]], word) for word in words]
    ended = stvit("superpixels", *given, *(() if "--output" in words else ("--output", tmp_path / "out")))
    assert ended.code == 2
    assert expected in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert not (tmp_path / "out").exists()
