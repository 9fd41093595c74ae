"""Resizing, cropping and colours of images with labels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from stvit_cli.data.segmentation_transforms import (
    IGNORED,
    TrainTransform,
    eval_transform,
    fit_size,
    normalize,
    photometric_distortion,
    random_crop,
    resize_labels,
)
from stvit_cli.recipe import IMAGENET_MEAN, IMAGENET_STD


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((683, 512), 1.0, (683, 512)),
        ((512, 683), 1.0, (512, 683)),
        ((1000, 500), 1.0, (1024, 512)),
        ((4000, 100), 1.0, (2048, 51)),
        ((640, 480), 0.5, (341, 256)),
        ((640, 480), 2.0, (1365, 1024)),
    ],
)
def test_a_image_fits_into_both_sides(size: tuple[int, int], factor: float, expected: tuple[int, int]) -> None:
    assert fit_size(size, (2048, 512), factor) == expected


def test_labels_are_resized_by_the_nearest_pixel() -> None:
    labels = np.array([[0, 7], [IGNORED, 300]], dtype=np.int32)
    larger = resize_labels(labels, (6, 4))
    assert np.array_equal(larger, labels.repeat(2, 0).repeat(3, 1))


def test_a_crop_of_one_class_is_drawn_again() -> None:
    labels = np.zeros((64, 256), dtype=np.int32)
    labels[:, 200:] = 1
    random.seed(0)
    lefts = [random_crop(labels, 64, 0.75)[1] for _ in range(50)]
    shares = [np.bincount(labels[:, left : left + 64].ravel()).max() / 64**2 for left in lefts]
    assert sum(share < 0.75 for share in shares) > 40  # ten draws miss the border seldom
    free = [random_crop(labels, 64, 1.0)[1] for _ in range(50)]
    assert sum(left < 136 for left in free) > 20
    labels[:, :200] = IGNORED  # one class is labelled: no crop is good, and the last one stands
    assert 0 <= random_crop(labels, 64, 0.75)[1] <= 192


def test_a_small_image_is_padded_with_the_mean_and_ignored_labels() -> None:
    transform = TrainTransform(
        64, IMAGENET_MEAN, IMAGENET_STD, max_size=(40, 30), scale_range=(1.0, 1.0), photometric=False, hflip=0.0
    )
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image, target = transform(Image.fromarray(pixels), np.full((30, 40), 3, dtype=np.int32))
    assert image.shape == (3, 64, 64)
    assert target.shape == (64, 64)
    assert target.dtype == torch.int64
    assert torch.equal(image[:, :30, :40], normalize(pixels, IMAGENET_MEAN, IMAGENET_STD))
    assert (image[:, 30:] == 0).all()
    assert (image[:, :, 40:] == 0).all()
    assert (target[:30, :40] == 3).all()
    assert (target[30:] == IGNORED).all()
    assert (target[:, 40:] == IGNORED).all()


def test_a_image_and_its_labels_stay_together() -> None:
    """Labels drawn as grey values are found again in the image, whatever crop and flip was drawn."""
    labels = np.arange(48 * 64, dtype=np.int32).reshape(48, 64) // 16 % 200
    image = Image.fromarray(np.repeat(labels[..., None], 3, axis=2).astype(np.uint8))
    transform = TrainTransform(40, (0.0,) * 3, (1.0,) * 3, max_size=(64, 48), photometric=False, interpolation="nearest")
    flips = set()
    for seed in range(12):
        random.seed(seed)
        pixels, target = transform(image, labels)
        assert torch.equal((pixels[0] * 255).round().long()[target >= 0], target[target >= 0])
        flips.add(bool((target[0, :20].diff() < 0).any()))
    assert flips == {True, False}


def test_normalize_is_the_published_formula() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 3), dtype=np.uint8)
    expected = (pixels - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    assert np.allclose(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD).permute(1, 2, 0), expected, atol=1e-5)


def test_colours_are_distorted_within_their_ranges() -> None:
    grey = np.full((4, 4, 3), 100, dtype=np.uint8)
    random.seed(0)
    results = {int(photometric_distortion(grey)[0, 0, 0]) for _ in range(300)}
    assert len(results) > 50
    assert min(results) >= int((100 - 32) * 0.5)
    assert max(results) <= (100 + 32) * 1.5
    assert 100 in results  # every distortion is left out now and then
    red = np.zeros((1, 1, 3), dtype=np.uint8)
    red[..., 0] = 200
    hues = {tuple(int(value > 0) for value in photometric_distortion(red)[0, 0]) for _ in range(200)}
    assert {(1, 0, 0), (1, 1, 0), (1, 0, 1)} <= hues  # to both sides of red
    assert photometric_distortion(np.zeros((3, 5, 3), dtype=np.uint8)[:, ::-1]).shape == (3, 5, 3)


def test_an_evaluation_sees_every_scale() -> None:
    transform = eval_transform((0.0,) * 3, (1.0,) * 3, max_size=(64, 48), scales=(0.5, 1.0, 1.75))
    assert [tuple(image.shape) for image in transform(Image.new("RGB", (80, 60)))] == [
        (1, 3, 24, 32),
        (1, 3, 48, 64),
        (1, 3, 84, 112),
    ]
