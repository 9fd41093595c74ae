"""Images decoded ahead: in order, few at a time, each failure with its own image."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stvit_cli.data import images as images_module
from stvit_cli.data import prefetch
from stvit_cli.data.images import open_image
from stvit_cli.data.prefetch import decoded_ahead
from stvit_cli.errors import UserError


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "usable_workers", lambda count: min(count, 4))


@pytest.mark.usefixtures("four_cores")
def test_order_is_kept_and_few_are_decoded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def slow_at_first(source: Any) -> str:
        time.sleep(0.02 if source == "0" else 0)
        decoded.append(source)
        return f"image {source}"

    monkeypatch.setattr(prefetch, "open_image", slow_at_first)
    sources = [str(number) for number in range(20)]
    for number, (source, opened) in enumerate(decoded_ahead(sources)):
        assert (source, opened()) == (str(number), f"image {number}")
        assert len(decoded) <= number + prefetch.MAX_THREADS
    assert sorted(decoded, key=int) == sources


@pytest.mark.usefixtures("four_cores")
def test_an_unreadable_image_fails_alone(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("text")
    array = np.zeros((5, 4, 3), np.uint8)
    opened = (function for _, function in decoded_ahead([tmp_path / "a.png", tmp_path / "b.png", array]))
    assert next(opened)().size == (3, 2)
    second = next(opened)  # before the end, which cancels what has not begun
    with pytest.raises(UserError, match=r"b\.png: not an image"):
        second()
    third = next(opened)
    assert third().size == (4, 5)
    assert next(opened, None) is None


@pytest.mark.usefixtures("four_cores")
def test_the_threads_end_where_the_images_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "open_image", lambda source: source)
    ahead = decoded_ahead([str(number) for number in range(50)])
    next(ahead)
    ahead.close()  # as after Ctrl-C, when the generator is left
    for _ in range(200):
        if not any(thread.name.startswith("decode") for thread in threading.enumerate()):
            return
        time.sleep(0.01)
    pytest.fail("the threads still run")


def test_decoding_in_threads_leaves_the_filters_of_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(warnings.filters)
    together = threading.Barrier(2)
    decode = images_module._decode_as_it_is

    def both_inside(content: bytes) -> Image.Image:
        together.wait(5)
        return decode(content)

    monkeypatch.setattr(images_module, "_decode_as_it_is", both_inside)
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    threads = [threading.Thread(target=open_image, args=(tmp_path / "a.png",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
