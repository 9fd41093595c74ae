"""The classes of ImageNet-1k."""

from __future__ import annotations

from stvit_cli.utils.class_lists import class_list, words_of_classes


def synsets() -> tuple[str, ...]:
    """Return the WordNet synsets of the 1000 classes, in order, as `timm.data.ImageNetInfo` does.

    >>> synsets()[0]
    'n01440764'
    """
    return class_list("imagenet-1k")


def descriptions() -> tuple[str, ...]:
    """Return the names of the 1000 classes, in order.

    >>> descriptions()[0]
    'tench, Tinca tinca'
    """
    return tuple(words_of_classes()[synset] for synset in synsets())
