"""Label maps: the whole image or windows, several scales, mirrored; against what the words say, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.tasks.segmentation.label_maps import Inferer, sliding_logits


class Colours(nn.Module):
    """Logits of three classes are the image's channels, with a window's own mean taken off: it sees its window alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((2, 3), keepdim=True)


class Lopsided(nn.Module):
    """Looks to the left: the mirrored image gives other answers."""

    def forward(self, x: Tensor) -> Tensor:
        return x - F.pad(x, (1, 0))[..., :-1]


def test_the_whole_image_at_its_original_size() -> None:
    image = torch.randn(1, 3, 40, 56)
    expected = F.interpolate(Colours()(image), (30, 42), mode="bilinear", align_corners=False).argmax(1)[0]
    found = Inferer()(Colours(), [image], (30, 42))
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("size", "window", "stride"), [((40, 56), 32, 21), ((33, 100), 32, 32), ((20, 90), 32, 10), ((32, 32), 32, 5)]
)
def test_windows_cover_every_pixel_and_are_averaged(size: tuple[int, int], window: int, stride: int) -> None:
    image = torch.randn(1, 3, *size)
    total, count = torch.zeros_like(image), torch.zeros(size)
    rows, columns = -(-max(size[0] - window, 0) // stride) + 1, -(-max(size[1] - window, 0) // stride) + 1
    for i in range(rows):  # mmsegmentation's grid: windows beyond the edge are moved back
        for j in range(columns):
            bottom, right = min(i * stride + window, size[0]), min(j * stride + window, size[1])
            place = (..., slice(max(bottom - window, 0), bottom), slice(max(right - window, 0), right))
            total[place] += Colours()(image[place])
            count[place] += 1
    assert (count > 0).all()
    assert torch.allclose(sliding_logits(Colours(), image, window, stride), total / count, atol=1e-6)


def test_the_model_sees_sides_of_a_multiple_and_the_padding_is_left_out() -> None:
    seen: list[Tensor] = []

    class Identity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    image = torch.randn(1, 3, 40, 65)
    found = Inferer(size_divisor=32)(Identity(), [image], (40, 65))
    assert torch.equal(found, image.argmax(1)[0])
    assert seen[0].shape == (1, 3, 64, 96)
    assert torch.equal(seen[0][..., :40, :65], image)
    assert torch.equal(seen[0][..., 40:, :65], image[..., 39:, :].expand(-1, -1, 24, -1))
    assert torch.equal(seen[0][..., :40, 65:], image[..., 64:].expand(-1, -1, -1, 31))


def test_a_window_as_large_as_the_image_is_the_image() -> None:
    image = torch.randn(1, 3, 40, 56)
    assert torch.equal(Inferer(window=64)(Colours(), [image], (40, 56)), Inferer()(Colours(), [image], (40, 56)))
    assert not torch.equal(sliding_logits(Colours(), image, 32, 21), Colours()(image))


def test_scales_and_mirrored_images_are_averaged_as_probabilities() -> None:
    images, size = [torch.randn(1, 3, 20, 28), torch.randn(1, 3, 40, 56)], (30, 42)
    total = torch.zeros(1, 3, *size)
    for image in images:
        for turn in (False, True):
            logits = Lopsided()(image.flip(3) if turn else image)
            probabilities = F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)
            total += probabilities.flip(3) if turn else probabilities
    found = Inferer(flip=True)(Lopsided(), images, size)
    assert torch.equal(found, total.argmax(1)[0])
    assert not torch.equal(found, Inferer()(Lopsided(), images, size))
