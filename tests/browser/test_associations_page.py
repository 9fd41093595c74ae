"""The super-token page under a mouse, a finger and a keyboard, at the width of a phone and of a laptop."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.browser import axe, overflow, small_targets, tab_through
from PIL import Image

import stvit_cli
from stvit_cli.analysis.associations.maps import Associations, associations, times_uniform
from stvit_cli.analysis.associations.page import association_page
from stvit_cli.analysis.associations.panels import ATTENTION, BACKGROUND_GREY, blend, plot_context
from stvit_cli.models.weights.file import WeightsInfo

SIZE = (107, 75)
HOSTILE = "</script><img src=x onerror=alert(1)>.png"
GLOBAL = "stage3.block1"


@pytest.fixture(scope="session")
def maps() -> Associations:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC)
    return associations(stvit_cli.create_model("stvit-nano"), image, WeightsInfo("stvit-nano", image_size=64))


@pytest.fixture(scope="session")
def path(maps: Associations, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("associations") / "index.html"
    path.write_text(association_page(plot_context(maps, HOSTILE, "stvit-nano"), (3, 4), trained=False), encoding="utf-8")
    return path


def shown(page) -> dict[str, str]:
    """What the address says is shown, once it says so."""
    page.wait_for_function("resting === 0")
    return dict(part.split("=") for part in page.evaluate("location.hash.slice(1)").split("&"))


def pixels(page, selector: str = "#view") -> np.ndarray:
    """The pixels of a canvas, (height, width, 3)."""
    width, height, values = page.evaluate(
        "s => { const c = document.querySelector(s), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " return [c.width, c.height, btoa(Array.from(d, v => String.fromCharCode(v)).join(''))]; }",
        selector,
    )
    return np.frombuffer(base64.b64decode(values), np.uint8).reshape(height, width, 4)[..., :3].astype(int)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_opens_and_holds_for_everyone(open_page, shoot, path: Path, width: int, dark: bool) -> None:
    page = open_page(path, width=width, dark=dark, touch=width == 390)
    assert page.inner_text("h1") == HOSTILE
    assert overflow(page) == 0
    axe(page)
    for number, (mode, _, _) in enumerate(page.evaluate("MODES")):
        page.keyboard.press(str(number + 1))
        assert shown(page)["view"] == mode
        shoot(page, f"tokens-{width}-{'dark' if dark else 'light'}-{mode}")
    axe(page)
    if width == 390:
        assert small_targets(page) == []


def test_keyboard_reaches_everything(open_page, path: Path, width: int) -> None:
    page = open_page(path, width=width)
    reached = tab_through(page)
    assert len(reached) == 1 + 5 + 1 + 7  # the image, views, save, layers; stage 1 has one head
    page = open_page(path, width=width, fragment="#layer=stage4.block1")
    assert len(tab_through(page)) == len(reached) + page.evaluate("current().heads") + 1


def test_image_stays_in_sight_on_a_phone_when_a_layer_is_chosen(open_page, shoot, path: Path) -> None:
    page = open_page(path, width=390, touch=True)
    last = page.locator("[data-layer]").last
    last.tap()
    assert shown(page)["layer"] == last.get_attribute("data-layer")
    box, view = last.bounding_box(), page.locator("#view").bounding_box()
    assert page.evaluate("scrollY") > 300
    assert 0 <= view["y"] < view["y"] + view["height"] <= 844
    assert view["y"] + view["height"] <= box["y"] + box["height"] / 2, "the image covers the layer that was chosen"
    shoot(page, "tokens-390-scrolled")


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_first_view_fills_the_clicked_super_token_and_dragging_follows(
    open_page, path: Path, maps: Associations, touch: bool
) -> None:
    page = open_page(path, width=390 if touch else 1280, touch=touch)
    layer, box = maps.layers["stage1.block1"], page.locator("#view").bounding_box()

    def at(x: int, y: int) -> tuple[float, float]:
        return box["x"] + (x + 0.5) / SIZE[0] * box["width"], box["y"] + (y + 0.5) / SIZE[1] * box["height"]

    def require_filled(point: tuple[int, int]) -> None:
        assert shown(page)["point"] == f"{point[0]},{point[1]}"
        now = pixels(page)
        labels = layer.label_map((now.shape[0], now.shape[1]))
        filled = np.abs(now - plain).sum(-1) > 30
        mine = labels == layer.token_labels()[layer.grid.token_at(*point)]
        # Apart from the outlines and the ring.
        assert filled[mine].mean() > 0.9
        assert filled[~mine].mean() < 0.25

    page.evaluate("() => { contextOf(get('view')).drawImage(image, 0, 0, get('view').width, get('view').height); }")
    plain = pixels(page)
    if touch:
        session = page.context.new_cdp_session(page)

        def send(kind: str, *points: tuple[int, int]) -> None:
            touches = [dict(zip("xy", at(*point), strict=True)) for point in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

        send("touchStart", (20, 20))
        require_filled((20, 20))
        for point in ((40, 30), (60, 45), (85, 60)):
            send("touchMove", point)
        require_filled((85, 60))
        send("touchEnd")
        assert page.evaluate("scrollY") == 0
    else:
        page.mouse.move(*at(20, 20))
        page.mouse.down()
        require_filled((20, 20))
        page.mouse.move(*at(85, 60), steps=4)
        require_filled((85, 60))
        page.mouse.up()
        page.mouse.move(*at(5, 5))
        require_filled((85, 60))


def test_attention_has_one_scale_in_all_layers_and_on_the_sheets(open_page, path: Path, maps: Associations) -> None:
    page = open_page(path, fragment="#layer=stage2.block2&point=61,40&view=attention")
    assert shown(page)["view"] == "attention"
    labels = page.locator("#scale .ticks span").all_inner_texts()
    assert labels == page.locator("#scale-of-layers .ticks span").all_inner_texts()
    assert labels[2] == "uniform"
    for bar in ("#scale canvas", "#scale-of-layers canvas"):
        drawn = pixels(page, bar)[0]
        expected = blend(np.linspace(0, 1, 256, dtype=np.float32)[None], BACKGROUND_GREY, ATTENTION.palette)[0] * 255
        np.testing.assert_allclose(drawn, expected, atol=1.5)
    for name, layer in maps.layers.items():
        values = layer.token_attention(layer.grid.token_at(61, 40)).mean(0)
        multiples = times_uniform(values)
        low, high = page.inner_text(f'[data-layer="{name}"] .number').removesuffix(" × uniform").split(" to ")
        assert float(low) == pytest.approx(multiples.min(), rel=0.06)
        assert float(high) == pytest.approx(multiples.max(), rel=0.06)
        assert float(low) <= 1 <= float(high)
        found = page.evaluate(
            f"[...timesUniform(attentionOf(page.layers.find(l => l.name === '{name}')))].map(v => [v, attentionPosition(v)])"
        )
        np.testing.assert_allclose([v for v, _ in found], multiples.ravel(), atol=multiples.max() / 100)
        np.testing.assert_allclose([p for _, p in found], ATTENTION(np.float32([v for v, _ in found])), atol=1e-4)


def test_attention_that_leaves_the_image_is_said(open_page, path: Path, maps: Associations) -> None:
    page = open_page(path, fragment="#layer=stage1.block1&point=0,0&view=attention")
    outside = 1 - maps.layers["stage1.block1"].token_attention((0, 0)).mean(0).sum()
    assert outside > 0.03
    text = page.inner_text("#description")
    assert f"{100 * outside:.3g}"[:2] in text.split("uniform.")[1]
    assert "% of it goes to padding outside the image" in text
    page.locator('[data-layer="stage4.block1"]').click()
    assert "outside the image" not in page.inner_text("#description")


def test_view_and_head_return_after_a_layer_without_them(open_page, path: Path) -> None:
    page = open_page(path, fragment="#layer=stage2.block1&point=50,30&view=means&head=2")
    before = pixels(page)
    assert page.locator("#heads").is_visible()
    page.locator(f'[data-layer="{GLOBAL}"]').click()
    assert page.locator('#modes [aria-pressed="true"]').inner_text() == "Attention"
    assert page.locator('#modes [aria-disabled="true"]').count() == 4
    page.locator("#modes button", has_text="Confidence").click(force=True)
    assert page.locator('#modes [aria-pressed="true"]').inner_text() == "Attention"
    page.locator('[data-layer="stage1.block1"]').click()  # one head
    assert not page.locator("#heads").is_visible()
    page.locator('[data-layer="stage2.block1"]').click()
    assert page.locator('#modes [aria-pressed="true"]').inner_text() == "Mean colours"
    assert page.locator('#heads [aria-pressed="true"]').inner_text() == "2"
    assert np.abs(pixels(page) - before).max() < 10


def test_keys_choose_layer_view_and_head(open_page, path: Path) -> None:
    page = open_page(path)
    layers = page.evaluate("page.layers.map(layer => layer.name)")
    for key, expected in (("k", layers[0]), ("j", layers[1]), ("j", layers[2]), ("K", layers[1])):
        page.keyboard.press(key)
        assert shown(page)["layer"] == expected
    page.keyboard.press("5")
    page.keyboard.press("h")
    assert shown(page) == {"layer": layers[1], "point": "3,4", "view": "attention", "head": "1"}
    page.keyboard.press("h")
    page.keyboard.press("h")
    assert "head" not in shown(page)
    page.locator("#view").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    x, y = map(int, shown(page)["point"].split(","))
    assert x > 3
    assert y > 4
    for key in ("J", "K", "H", "S", "1", "5"):
        assert page.locator("#keys kbd", has_text=key).count() >= 1


def test_address_restores_what_is_shown(open_page, path: Path) -> None:
    page = open_page(path)
    page.keyboard.press("j")
    page.keyboard.press("5")
    page.keyboard.press("h")
    page.locator("#view").click(position={"x": 300, "y": 200})
    wanted = shown(page)
    again = open_page(path, fragment=page.evaluate("location.hash"))
    assert shown(again) == wanted
    assert wanted["view"] == "attention"
    assert np.abs(pixels(again) - pixels(page)).max() < 10  # the ring's edge is not drawn twice alike
    again.evaluate("location.hash = '#layer=stage4.block1&point=7,8'")
    again.wait_for_function("state.layer === 'stage4.block1'")
    assert shown(again)["point"] == "7,8"


def test_address_that_does_not_fit_is_said(open_page, path: Path) -> None:
    page = open_page(path, fragment="#layer=stage9.block1&point=900,4&view=none&head=99")
    assert shown(page) == {"layer": "stage1.block1", "point": "3,4", "view": "outlines"}
    notice = page.inner_text("#notice")
    assert all(part in notice for part in ("layer=stage9.block1", "point=900,4", "view=none", "head=99"))
    assert not open_page(path).locator("#notice").is_visible()


def test_image_is_saved_with_its_scale(open_page, path: Path, tmp_path: Path) -> None:
    page = open_page(path, fragment="#layer=stage2.block1&point=50,30&view=attention")
    view = pixels(page)
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename.endswith("-stage2.block1-attention-50-30.png")
    saved = np.asarray(Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("RGB")).astype(int)
    assert saved.shape[1] == view.shape[1]
    assert (saved[: len(view)] == view).all()
    below = saved[len(view) :]
    assert ((below.max(-1) - below.min(-1)) > 60).any(), "the colour bar"
    assert (below.max(-1) < 80).any(), "the text"


def test_each_view_says_what_it_shows(open_page, path: Path) -> None:
    page = open_page(path)
    sentences = set()
    for number in range(1, 6):
        page.keyboard.press(str(number))
        sentences.add(page.inner_text("#sentence"))
    assert len(sentences) == 5
    assert all(len(sentence) > 40 and sentence.endswith(".") for sentence in sentences)


def test_canvases_are_kept_where_pixels_are_read_quickly(open_page, path: Path) -> None:
    page = open_page(path)
    found = page.evaluate(
        "[...document.querySelectorAll('canvas')].map(c => c.getContext('2d').getContextAttributes().willReadFrequently)"
    )
    assert len(found) > 5
    assert all(found)
