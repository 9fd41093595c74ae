"""ImageNet's lists of classes by name, from timm's files: WordNet IDs in the order of their numbers.

Reading the files takes no import of timm, which needs seconds.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

CLASS_LISTS = {
    "imagenet-1k": "imagenet_synsets.txt",
    "imagenet-12k": "imagenet12k_synsets.txt",
    "imagenet-21k-p": "imagenet21k_miil_w21_synsets.txt",
    "imagenet-21k-miil": "imagenet21k_miil_synsets.txt",
    "imagenet-21k-goog": "imagenet21k_goog_synsets.txt",
    "imagenet-22k": "imagenet22k_synsets.txt",
}
"""The file of each list. imagenet-22k: the 21 841 classes of the fall 2011 release. imagenet-21k-p: the 10 450 of ImageNet-21K-P,
made of the winter 2021 release. imagenet-21k-miil: the 11 221 of the same processing of fall 2011."""

_WORDNET_ID = re.compile(r"n\d{8}")


@cache
def class_list(name: str) -> tuple[str, ...]:
    """Return the WordNet IDs of a list, one of `CLASS_LISTS`.

    Example:
        >>> len(class_list("imagenet-22k")), len(class_list("imagenet-21k-p")), class_list("imagenet-1k")[0]
        (21841, 10450, 'n01440764')
    """
    return tuple(_text(CLASS_LISTS[name]).split())


@cache
def words_of_classes() -> dict[str, str]:
    """Return the words of each WordNet ID.

    Example:
        >>> words_of_classes()["n01440764"]
        'tench, Tinca tinca'
    """
    return dict(csv.reader(_text("imagenet_synset_to_lemma.txt").splitlines(), delimiter="\t"))


def described_class(name: str) -> str:
    """Return the name of a class for a reader: a WordNet ID with its words, any other name as it is.

    Example:
        >>> described_class("n01440764"), described_class("cat")
        ('n01440764 tench, Tinca tinca', 'cat')
    """
    words = words_of_classes().get(name) if _WORDNET_ID.fullmatch(name) else None
    return name if words is None else f"{name} {words}"


def _text(name: str) -> str:
    spec = find_spec("timm")
    assert spec is not None, "timm is a dependency"
    assert spec.submodule_search_locations, "timm is a package"
    return (Path(spec.submodule_search_locations[0]) / "data" / "_info" / name).read_text(encoding="utf-8")
