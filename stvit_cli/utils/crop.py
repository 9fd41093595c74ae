"""The crop of an image in evaluation, where nothing else is said. Below recipes, weights and data, which all need it."""


def default_crop_pct(image_size: int) -> float:
    """Return the ratio of the center crop to the resized short side: 224/256 up to 224 pixels, 1 above (DeiT, STViT).

    >>> default_crop_pct(224), default_crop_pct(384)
    (0.875, 1.0)
    """
    return 224 / 256 if image_size <= 224 else 1.0
