"""The scale of attention: the same for every panel, centred on uniform attention, and told apart by colour-blind readers."""

from __future__ import annotations

import numpy as np
import pytest

from stvit_cli.analysis.associations.maps import times_uniform
from stvit_cli.analysis.associations.panels import ATTENTION, blend

# Severe colour blindness in linear RGB: Machado, Oliveira and Fernandes, IEEE Transactions on Visualization and Computer
# Graphics, 2009, their matrices for severity 1.
COLOUR_BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB (n, 3)."""
    xyz = rgb @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def test_scale_of_attention_is_centred_on_uniform() -> None:
    values = np.array([0, 0.01, 0.25, 0.5, 1, 2, 4, 80], dtype=np.float32)
    np.testing.assert_allclose(ATTENTION(values), [0, 0, 0, 0.25, 0.5, 0.75, 1, 1], atol=1e-6)
    assert ATTENTION.ticks[1] == "uniform"
    opacity = ATTENTION.palette[:, 3]
    assert opacity[127:129].max() < 0.05
    assert (np.diff(opacity[128:]) > 0).all()
    np.testing.assert_allclose(opacity, opacity[::-1], atol=1e-6)


def test_multiples_of_uniform_attention_are_centred_on_one_whatever_leaves_the_image() -> None:
    attention = np.random.default_rng(0).random((2, 5, 7)).astype(np.float32)
    attention *= 0.6 / attention.sum((1, 2), keepdims=True)  # 40 % went outside
    np.testing.assert_allclose(times_uniform(attention).mean((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(times_uniform(attention), attention / (0.6 / 35), rtol=1e-5)


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_more_and_less_than_uniform_differ_for_the_colour_blind(kind: str) -> None:
    for grey in (0.0, 0.3, 1.0):
        below, above = (
            to_lab(
                np.clip(linear(blend(ATTENTION(values)[None], grey, ATTENTION.palette)[0]) @ np.array(COLOUR_BLIND[kind]).T, 0, 1)
            )
            for values in (1 / np.float32([1.4, 2, 3, 4]), np.float32([1.4, 2, 3, 4]))
        )
        # 2.3 is a just noticeable difference.
        assert (np.linalg.norm(above - below, axis=1) > 15).all(), (grey, np.linalg.norm(above - below, axis=1))
