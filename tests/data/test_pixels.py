"""The compiled transforms and simplejpeg: Pillow's pixels to the last bit, Pillow itself wherever they do not serve."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from stvit_cli.data import images as images_module
from stvit_cli.data import jpeg, pixels
from stvit_cli.data.byte_images import ByteImages, normalized
from stvit_cli.data.classification import TrainSet
from stvit_cli.data.images import decode_image, open_image, orientation_of
from stvit_cli.data.loader import build_train_loader
from stvit_cli.data.pixels import MappedImage, PixelLibrary, pixels_of
from stvit_cli.data.sampling import SampleKey, TrainBatches
from stvit_cli.data.transforms import eval_transform, train_transform
from stvit_cli.recipe.schema import IMAGENET_MEAN, IMAGENET_STD

FILTERS = list(pixels.RESIZED)


@pytest.fixture
def compiled() -> PixelLibrary:
    functions = pixels.library()
    if functions is None:
        pytest.skip("no C++ compiler, or no AVX2")
    return functions


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_loaded", [None])


def noise(height: int, width: int) -> Any:
    """Half of it black and white, where a cubic filter overshoots most."""
    values = np.random.default_rng([height, width]).integers(0, 256, (height, width, 4), dtype=np.uint8)
    values[: height // 2] = values[: height // 2] // 128 * 255
    return values


def rgb(array: Any) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array[..., :3]))


@pytest.mark.parametrize("resampling", FILTERS)
def test_resized_parts_are_those_of_pillow(compiled: PixelLibrary, resampling: Image.Resampling) -> None:
    random = np.random.default_rng(0)
    for number in range(60):
        height, width = random.integers(1, 90 if number % 4 else 400, 2).tolist()
        array = noise(height, width)
        part_width, part_height = int(random.integers(1, width + 1)), int(random.integers(1, height + 1))
        left, top = int(random.integers(0, width - part_width + 1)), int(random.integers(0, height - part_height + 1))
        size = (part_width if number % 7 == 0 else int(random.integers(1, 50)), part_height if number % 5 == 0 else 32)
        out = np.empty((size[1], size[0], 3 + number % 2), dtype=np.uint8)
        box = (left, top, part_width, part_height)
        if not compiled.resizes(box, size[1], resampling):
            continue
        compiled.resize(array, box, out, resampling, flip=number % 3 == 0)
        expected = np.asarray(rgb(array).crop((left, top, left + part_width, top + part_height)).resize(size, resampling))
        assert np.array_equal(out[..., :3], expected[:, ::-1] if number % 3 == 0 else expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_compiled_evaluation_is_that_of_pillow(compiled: PixelLibrary, interpolation: str) -> None:
    random = np.random.default_rng(0)
    for number in range(40):
        height, width = random.integers(1, 90 if number % 4 else 500, 2).tolist()
        array = noise(height, width)
        crop_pct = (0.875, 1.0, 1.1)[number % 3]
        transform = eval_transform(32, IMAGENET_MEAN, IMAGENET_STD, crop_pct, interpolation)
        expected = np.asarray(transform.cropped(rgb(array)))
        for image in (rgb(array), MappedImage.of(array)):
            assert np.array_equal(transform.pixels(image), expected), (height, width)


@pytest.mark.parametrize("chooses", [False, True])
def test_each_order_of_passes_is_that_of_pillow_in_two_steps(
    compiled: PixelLibrary, monkeypatch: pytest.MonkeyPatch, chooses: bool
) -> None:
    monkeypatch.setattr(pixels, "CHOOSES_ORDER", chooses)
    differing = 0
    for number in range(40):
        width, height = 20 + number % 7, 30 + 2 * number
        array, size = noise(height, width), (24, 24)
        out = np.empty((24, 24, 3), dtype=np.uint8)
        compiled.resize(array, (0, 0, width, height), out, Image.Resampling.BICUBIC)
        by_rows = rgb(array).resize((24, height), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
        by_columns = rgb(array).resize((width, 24), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
        assert np.array_equal(out, np.asarray(by_columns if chooses else by_rows))
        differing += not np.array_equal(np.asarray(by_columns), np.asarray(by_rows))
    assert differing > 20


@pytest.mark.parametrize("resampling", FILTERS)
def test_affine_transforms_are_those_of_pillow(compiled: PixelLibrary, resampling: Image.Resampling) -> None:
    random = np.random.default_rng(0)
    matrices: list[tuple[float, ...]] = [
        (1, -0.27, 0, 0, 1, 0),
        (1, 0, 0, 0.3, 1, 0),
        (1, 0, 7.25, 0, 1, 0),
        (1, 0, 0, 0, 1, -9.6),
    ]
    for matrix in [*matrices, *random.uniform(-1.5, 1.5, (20, 6)).tolist()]:
        array = noise(*random.integers(1, 40, 2).tolist())
        image = MappedImage.of(array)
        found = image.transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=(9, 8, 7))
        expected = rgb(array).transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=(9, 8, 7))
        assert isinstance(found, MappedImage)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_a_mapped_image_that_is_changed_in_place_has_memory_of_its_own() -> None:
    array = noise(5, 4)
    before = array.copy()
    image = MappedImage.of(array)
    assert pixels_of(image) is array
    image.paste((1, 2, 3), (0, 0, 2, 2))
    assert np.array_equal(array, before)
    assert pixels_of(image)[0, 0, :3].tolist() == [1, 2, 3]


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def test_simplejpeg_decodes_to_the_pixels_of_pillow() -> None:
    pytest.importorskip("simplejpeg")
    for size in ((1, 1), (7, 5), (33, 47)):
        for mode in ("RGB", "L"):
            for options in ({"subsampling": kind} for kind in ("4:4:4", "4:2:2", "4:2:0")):
                for progressive in (False, True):
                    content = encoded(rgb(noise(*size)).convert(mode), progressive=progressive, quality=70, **options)
                    found = jpeg.decode_jpeg(content)
                    assert found is not None
                    assert np.array_equal(found[..., :3], np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_what_is_no_ordinary_jpeg_is_left_to_pillow() -> None:
    image = rgb(noise(8, 12))
    turned = image.getexif()
    turned[0x0112] = 6
    content = encoded(image, exif=turned)
    assert jpeg.decode_jpeg(content) is None
    assert decode_image(content, "").size == (8, 12)
    assert orientation_of(decode_image(content, "")) == 6
    upright = image.getexif()
    upright[0x0112] = 1
    for other in (
        encoded(image.convert("CMYK")),
        encoded(image)[:-9],
        encoded(image)[:20],
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1\xff",
    ):
        assert jpeg.decode_jpeg(other) is None
    if jpeg._decoder() is not None:
        assert jpeg.decode_jpeg(encoded(image, exif=upright)) is not None


def test_without_simplejpeg_pillow_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(rgb(noise(8, 12))))
    before = open_image(tmp_path / "a.jpg")
    monkeypatch.setattr(jpeg, "_decoder", lambda: None)
    after = open_image(tmp_path / "a.jpg")
    assert not isinstance(after, MappedImage)
    assert np.array_equal(np.asarray(after), np.asarray(before))


def test_a_decoder_with_other_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda content: decode(content) ^ 1)
    assert jpeg._decoder.__wrapped__() is None


def test_functions_with_other_results_than_pillow_are_not_used(compiled: PixelLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_loaded", [])
    monkeypatch.setattr(PixelLibrary, "affine", lambda self, array, *_: array)
    assert pixels.library() is None


def test_a_missing_compiler_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_loaded", [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert pixels.library(build=False) is None
    assert pixels.library() is None


class Photographs:
    """JPEG files of several sizes, and one that is narrower than Pillow's ordinary order of resizing."""

    notes, class_names = (), ("a", "b")

    def __init__(self) -> None:
        self.contents = [encoded(rgb(noise(height, 60 + height))) for height in (40, 64, 90)] + [encoded(rgb(noise(450, 4)))]

    def __len__(self) -> int:
        return len(self.contents)

    def path(self, index: int) -> str:
        return f"{index}.jpg"

    relative_path = path

    def fingerprint(self) -> str:
        return ""

    def target(self, index: int) -> int:
        return index % 2

    def open(self, index: int) -> Image.Image:
        return images_module.decode_image(self.contents[index], "")


def photographs(**augment: Any) -> TrainSet:
    transform = train_transform(32, IMAGENET_MEAN, IMAGENET_STD, random_erasing=0.6, **augment)
    return TrainSet(Photographs(), transform, seed=1, unreadable="stop")


KEYS = [SampleKey(index, epoch, 0) for epoch in range(12) for index in range(4)]
AUGMENTS: list[dict[str, Any]] = [{"vflip": 0.5}, {"auto_augment": "rand-m9-n3-mstd0.5-inc1"}, {"auto_augment": "augmix-m5"}]


@pytest.mark.parametrize("augment", AUGMENTS, ids=str)
def test_a_batch_of_files_is_that_of_the_items_to_the_last_bit(augment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = photographs(**augment)
    batch = dataset.batch(KEYS)["image"]
    assert batch.pixels.dtype == torch.uint8
    monkeypatch.setattr(jpeg, "_decoder", lambda: None)  # the items by Pillow alone
    expected = default_collate([dataset[key]["image"] for key in KEYS])
    assert torch.equal(batch.on(torch.device("cpu")), expected)


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = photographs(auto_augment="rand-m9-mstd0.5-inc1")
    found = dataset.batch(KEYS)["image"].on(torch.device("cpu"))
    monkeypatch.undo()
    expected = photographs(auto_augment="rand-m9-mstd0.5-inc1").batch(KEYS)["image"].on(torch.device("cpu"))
    assert torch.equal(found, expected)


def test_workers_hand_over_bytes_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stvit_cli.data.loader.usable_workers", lambda count: count)
    dataset = photographs()
    sizes = {"global_batch_size": 4, "micro_batch_size": 4, "rank": 0, "world_size": 1}
    batches = TrainBatches(4, seed=0, repeats=1, start_step=0, num_steps=3, **sizes)
    on_cpu = list(build_train_loader(dataset, batches, default_collate, 0, pin_memory=False))
    for_gpu = list(build_train_loader(dataset, batches, default_collate, 2, pin_memory=True))
    for here, there in zip(on_cpu, for_gpu, strict=True):
        assert isinstance(there["image"], ByteImages)
        assert there["image"].pixels.is_shared()
        assert torch.equal(there["image"].on(torch.device("cpu")), here["image"])
        assert torch.equal(there["index"], here["index"])


@pytest.mark.parametrize("depth", [1, 3])
def test_normalization_by_table_is_that_by_arithmetic(compiled: PixelLibrary, depth: int) -> None:
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 16, 16, depth), dtype=np.uint8))
    found = ByteImages(values, IMAGENET_MEAN, IMAGENET_STD).on(torch.device("cpu"))
    expected = normalized(values, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
