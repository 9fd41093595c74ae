from __future__ import annotations

import pytest

from stvit_cli.utils.text import metric_text


@pytest.mark.parametrize(
    ("name", "num_images", "text"),
    [
        *(("top1", 12, "92"), ("top1", 100, "92"), ("top1", 360, "91.7"), ("top1", 5000, "91.67"), ("top1", 50000, "91.67")),
        *(("loss", 12, "91.67"), ("ema_loss", 50000, "91.6667"), ("miou", 0, "92")),
    ],
)
def test_a_metric_has_the_digits_that_its_sample_supports(name: str, num_images: int, text: str) -> None:
    assert metric_text(name, 91.66667, num_images) == text
