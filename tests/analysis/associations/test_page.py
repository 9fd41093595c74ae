"""The HTML page is self-contained, and its script computes what `LayerMaps` computes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import stvit_cli
from stvit_cli.analysis.associations.maps import associations, times_uniform
from stvit_cli.analysis.associations.page import association_page
from stvit_cli.analysis.associations.panels import ATTENTION, DIVERGING, PlotContext, blend, plot_context
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo

POINTS = ((0, 0), (61, 40), (106, 74))
NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")


@pytest.fixture(scope="module")
def shown() -> PlotContext:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((107, 75), Image.Resampling.BICUBIC)
    model = stvit_cli.create_model("stvit-nano")
    return plot_context(
        associations(model, image, WeightsInfo("stvit-nano", image_size=64)), "a </script> name.png", "stvit-nano"
    )


def data_of(page: str) -> str:
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    return str(found)


def printed(page: str, until: str, program: str, folder: Path) -> Any:
    """Run a program after the page's functions above a heading, with the page's data as ``page``; return the JSON it prints."""
    functions = page.split("// ---- arithmetic")[1].split(f"// ---- {until}")[0]
    (folder / "page.js").write_text(f"const page = {data_of(page)}, image = {{}};\n// {functions}\n{program}")
    ended = subprocess.run(["node", folder / "page.js"], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(ended.stdout)


def test_page_is_self_contained(shown: PlotContext) -> None:
    page = association_page(shown, (3, 4), trained=False)
    assert not re.search(r"https?:|@import|url\(|<link|<img|src=", page)
    data = json.loads(data_of(page))
    assert data["name"] == "a </script> name.png"
    assert data["point"] == [3, 4]
    assert data["trained"] is False
    assert [layer["name"] for layer in data["layers"]] == list(shown.maps.layers)
    assert [layer["heads"] for layer in data["layers"]] == [layer.num_heads for layer in shown.maps.layers.values()]


def test_control_characters_in_a_name_are_escaped(shown: PlotContext) -> None:
    hostile = plot_context(shown.maps, "a\x1b[2J\n\0.png", "weights \x9b.safetensors")
    data = json.loads(data_of(association_page(hostile, (3, 4), trained=True)))
    assert data["name"] == hostile.name == r"a\x1b[2J\n\x00.png"
    assert data["about"].startswith(r"weights \x9b.safetensors.")


def test_large_image_keeps_the_mean_over_heads_or_is_refused(shown: PlotContext, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [layer.keys.shape[1] ** 2 for layer in shown.maps.layers.values()]
    monkeypatch.setattr("stvit_cli.analysis.associations.page.MAX_ATTENTION_BYTES", sum(pairs))
    data = json.loads(data_of(association_page(shown, (3, 4), trained=True)))
    assert {layer["heads"] for layer in data["layers"]} == {1}
    monkeypatch.setattr("stvit_cli.analysis.associations.page.MAX_ATTENTION_BYTES", sum(pairs) - 1)
    with pytest.raises(UserError, match="Reduce image_size"):
        association_page(shown, (3, 4), trained=True)


@NEEDS_NODE
def test_script_computes_the_same_maps(shown: PlotContext, tmp_path: Path) -> None:
    page = association_page(shown, (3, 4), trained=True)
    program = (
        f"const result = page.layers.map(unpack).map(layer => {json.dumps(POINTS)}.map(point => {{\n"
        "  const token = tokenAt(layer, point), heads = [...Array(layer.heads).keys(), -1];\n"
        "  const superToken = layer.labels && layer.labels[token[0] * layer.tokens[1] + token[1]];\n"
        "  return { token, superToken, attention: heads.map(head => [...attention(layer, ...token, head)]),\n"
        "    column: layer.labels && [...column(layer, superToken)], confidence: layer.labels && [...confidence(layer)],\n"
        "    resized: [...resizeLinear(layer, attention(layer, ...token, 0), 30, 43)],\n"
        "    multiples: [...timesUniform(attention(layer, ...token, -1))], outside: outside(attention(layer, ...token, -1)),\n"
        "    positions: [...timesUniform(attention(layer, ...token, -1)).map(attentionPosition)] };\n"
        "}));\nconsole.log(JSON.stringify(result));\n"
    )
    computed = printed(page, "drawing", program, tmp_path)
    for layer, points in zip(shown.maps.layers.values(), computed, strict=True):
        for (x, y), found in zip(POINTS, points, strict=True):
            token = layer.grid.token_at(x, y)
            assert tuple(found["token"]) == token
            expected = layer.token_attention(token)
            attention = np.array(found["attention"]).reshape(-1, *layer.grid.tokens)
            np.testing.assert_allclose(attention[:-1], expected, atol=expected.max() / 200)
            np.testing.assert_allclose(attention[-1], expected.mean(0), atol=expected.max() / 200)
            np.testing.assert_allclose(
                np.array(found["resized"]).reshape(30, 43),
                layer.grid.resize_linear(expected[0], (30, 43)),
                atol=expected.max() / 200,
            )
            multiples = times_uniform(expected.mean(0)).ravel()
            np.testing.assert_allclose(found["multiples"], multiples, atol=multiples.max() / 100)
            np.testing.assert_allclose(found["positions"], ATTENTION(multiples), atol=0.02)
            assert found["outside"] == pytest.approx(1 - expected.mean(0).sum(), abs=0.01)
            if not layer.is_global:
                assert found["superToken"] == layer.token_labels()[token]
                column = np.array(found["column"]).reshape(layer.grid.tokens)
                np.testing.assert_allclose(column, layer.association_with(found["superToken"]), atol=1e-4)
                confidence = np.array(found["confidence"]).reshape(layer.grid.tokens)
                np.testing.assert_allclose(confidence, layer.confidence(), atol=1e-4)


@NEEDS_NODE
def test_script_draws_every_view(shown: PlotContext, tmp_path: Path) -> None:
    """On a canvas of zeros, heat maps and mean colours are drawn without an error and change the pixels."""
    page = association_page(shown, (3, 4), trained=True)
    program = (
        "const palette = bytes(page.palettes.heat), layer = unpack(page.layers[0]);\n"
        "const drawn = [], context = { drawImage() {}, putImageData(frame) { drawn.push(Math.max(...frame.data)); },\n"
        "  getImageData(x, y, width, height) { return { data: new Uint8ClampedArray(4 * width * height) }; } };\n"
        "const canvas = { width: 20, height: 15, getContext: () => context };\n"
        "paintHeat(canvas, layer, confidence(layer), palette, true);\n"
        "paintMeans(canvas, layer);\nconsole.log(JSON.stringify(drawn));\n"
    )
    assert printed(page, "the page", program, tmp_path) == [255, 0]


@NEEDS_NODE
def test_script_blends_the_colours_of_the_sheets(shown: PlotContext, tmp_path: Path) -> None:
    page = association_page(shown, (3, 4), trained=True)
    program = (
        "const palette = bytes(page.palettes.attention), result = [];\n"
        "for (let i = 0; i < 256; i++) blend(palette, i / 255, 0.4, result, 4 * i);\nconsole.log(JSON.stringify(result));\n"
    )
    found = np.array(printed(page, "the page", program, tmp_path)).reshape(256, 4)
    expected = blend(np.linspace(0, 1, 256, dtype=np.float32)[None], 0.4, DIVERGING)[0]
    np.testing.assert_allclose(found[:, :3] / 255, expected, atol=0.01)
    assert (found[:, 3] == 255).all()
