"""Colours of classes: the same in every drawing, page and legend."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_FIRST: tuple[Colour, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # reddish purple
)
"""Okabe and Ito's colours (jfly.uni-koeln.de/color), which people with each kind of colour blindness tell apart."""

_TONES = ((0.75, 0.95), (0.9, 0.6), (0.45, 0.85))
"""Saturation and value of further colours, so that neighbours differ in lightness too."""

_GOLDEN_RATIO = 0.6180339887498949


def class_colour(index: int) -> Colour:
    """Return the colour of a class.

    The first seven are distinct to the colour-blind. Further ones have hues by the golden ratio in three lightnesses; nobody
    tells 80 colours apart by eye, so names belong beside them.

    Args:
        index: of the class, from 0.

    Example:
        >>> class_colour(0), class_colour(1)
        ((230, 159, 0), (86, 180, 233))
    """
    if index < len(_FIRST):
        return _FIRST[index]
    saturation, value = _TONES[index % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb(_GOLDEN_RATIO * index % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: Colour) -> str:
    """Return ``black`` or ``white``: what has more contrast on a colour.

    Example:
        >>> text_colour((240, 228, 66)), text_colour((0, 114, 178))
        ('black', 'white')
    """
    luminance = sum(
        weight * (channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4)
        for weight, channel in zip((0.2126, 0.7152, 0.0722), (value / 255 for value in background), strict=True)
    )
    return "black" if luminance > 0.179 else "white"  # where both have the same contrast by WCAG 2
