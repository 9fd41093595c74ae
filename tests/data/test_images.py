"""Every kind of image file comes out as the right RGB; every bad one as an error that names it."""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from stvit_cli.data.images import UnreadableImageError, explain_failure, open_image
from stvit_cli.errors import UserError

GREY = np.linspace(0, 255, 24 * 16).reshape(16, 24).astype(np.uint8)
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def read(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOURS).save(path, **({"lossless": True} if ending == "webp" else {}))
    assert (read(path) == COLOURS).all()


def test_a_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOURS).save(path)
    with Image.open(path) as image:
        assert (read(path) == np.asarray(image.convert("RGB"))).all()


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    red.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert abs(read(tmp_path / "a.jpg") - [200, 30, 30]).max() < 12


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, ending: str) -> None:
    wide = np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.uint16)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(wide).save(path)
    assert (read(path) == np.rint(wide / 257)[..., None]).all()


def test_float_grey_is_taken_as_zero_to_one_and_refused_beyond(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "a.tif")
    assert (read(tmp_path / "a.tif") == GREY[..., None]).all()
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(UnreadableImageError, match=r"b\.tif.*0 to 255, where 0 to 1"):
        open_image(tmp_path / "b.tif")


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette(tmp_path: Path, mode: str) -> None:
    source = Image.fromarray(GREY).convert(mode)
    source.save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == np.asarray(source.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(tmp_path: Path, mode: str) -> None:
    source = Image.new(mode, (4, 2), (0,) * len(mode))  # black, and all of it transparent
    source.putpixel((0, 0), (0,) * (len(mode) - 1) + (255,))
    source.putpixel((1, 0), (0,) * (len(mode) - 1) + (128,))
    source.save(tmp_path / "a.png")
    pixels = read(tmp_path / "a.png")
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert abs(pixels[0, 1] - 127).max() <= 1
    assert (pixels[1] == 255).all()


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_a_transparent_palette_lies_over_white(tmp_path: Path, transparency: int | bytes) -> None:
    source = Image.new("P", (4, 2))
    source.putpalette([0, 0, 0, 10, 20, 30])
    source.putpixel((1, 0), 1)
    source.save(tmp_path / "a.png", transparency=transparency)
    pixels = read(tmp_path / "a.png")
    assert pixels[0, 1].tolist() == [10, 20, 30]
    assert (pixels[1] == 255).all()


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "a.gif") == [255, 0, 0]).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(path, exif=exif)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)  # Pillow's own, as the oracle
    assert upright.size == ((16, 24) if orientation >= 5 else (24, 16))
    assert (read(path) == np.asarray(upright.convert("RGB"))).all()


def test_damaged_metadata_is_no_reason_to_refuse_or_to_warn(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOURS).save(path, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path).size == (24, 16)


def write_bomb(path: Path) -> None:
    """A PNG that claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    side = (60000).to_bytes(4, "big")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side + side + b"\x01\0\0\0\0") + chunk(b"IDAT", zlib.compress(b"")))


def write_truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_text("hello"), "not an image in a known format"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image in a known format"),
        (lambda path: path.write_bytes(b""), "empty"),
        (write_truncated, "truncated"),
        (write_bomb, "too large"),
    ],
)
def test_what_cannot_be_decoded_is_named(tmp_path: Path, write, reason: str) -> None:
    path = tmp_path / "an image.jpg"
    write(path)
    with pytest.raises(UnreadableImageError, match=f"{re.escape(str(path))}.*{reason}") as caught:
        open_image(path)
    assert str(caught.value).count("\n") == 0


def test_any_damage_to_a_file_gives_a_image_or_an_error_that_names_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    refused = 0
    for ending in ("jpg", "png", "gif", "webp", "tif", "bmp"):
        whole = tmp_path / f"whole.{ending}"
        Image.fromarray(COLOURS).save(whole)
        for _ in range(60):
            content = bytearray(whole.read_bytes())
            for position in random.integers(0, len(content), 8):
                content[position] = random.integers(0, 256)
            broken = tmp_path / f"broken.{ending}"
            broken.write_bytes(content[: random.integers(1, len(content) + 1)])
            try:
                mode = open_image(broken).mode
            except UnreadableImageError as error:
                message = str(error)
                refused += 1
            else:
                message = str(broken)
                assert mode == "RGB"
            assert str(broken) in message
    assert refused > 100


def test_files_that_cannot_be_read_are_no_unreadable_images(tmp_path: Path) -> None:
    """They must stop a run even where unreadable images are skipped."""
    (tmp_path / "cat.png").write_bytes(b"x")
    for path, reason in [(tmp_path / "cat.pgn", r"no such file\. Did you mean 'cat\.png'"), (tmp_path, "a folder")]:
        with pytest.raises(UserError, match=reason) as caught:
            open_image(path)
        assert not isinstance(caught.value, UnreadableImageError)


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a link that leads to itself", "the link is broken"])
def test_what_is_no_file_is_refused_by_name_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("x.png")
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to({"a device": "/dev/zero", "a link that leads to itself": "x.png"}.get(kind, "gone.png"))
    with pytest.raises(UserError, match=rf"^x\.png: .*{kind}"):
        open_image(path)


@pytest.mark.parametrize("kind", ["text", "compressed text", "profile"])
def test_png_with_metadata_over_a_megabyte_is_read(tmp_path: Path, kind: str) -> None:
    long = "x" * (3 << 20)
    texts = PngImagePlugin.PngInfo()
    if kind != "profile":
        texts.add_text("Comment", long, zip=kind == "compressed text")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path, pnginfo=texts, exif=exif, icc_profile=os.urandom(3 << 20) if kind == "profile" else None)
    assert (read(path) == np.rot90(COLOURS, -1)).all()


def test_the_orientation_in_a_text_is_kept_where_another_text_is_too_large(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="3"/></rdf:RDF></x:xmpmeta>'
    texts.add_itxt("XML:com.adobe.xmp", xmp)
    texts.add_text("Comment", "x" * (2 << 20), zip=True)
    Image.fromarray(COLOURS).save(tmp_path / "a.png", pnginfo=texts)
    assert (read(tmp_path / "a.png") == COLOURS[::-1, ::-1]).all()


def test_warnings_and_logs_of_pillow_do_not_reach_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # the image has 384: Pillow warns of a bomb
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tmp_path / "a.png").size == (24, 16)
    assert logging.getLogger("PIL").handlers, "without a handler Python prints what a library logs"


def test_control_characters_in_a_file_name_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\nb.png"
    path.write_text("no image")
    with pytest.raises(UnreadableImageError, match=r"a\\x1b\[2J\\nb\.png: not an image"):
        open_image(path)
    assert "\x1b" not in explain_failure(path, MemoryError())
    with pytest.raises(KeyError):
        explain_failure(path, KeyError("a fault of the program"))
