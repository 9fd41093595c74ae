"""The classes of ImageNet-1k, from timm's files: reading them takes no import of timm, which needs seconds."""

from __future__ import annotations

import csv
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def synsets() -> tuple[str, ...]:
    """Return the WordNet synsets of the 1000 classes, in order, as `timm.data.ImageNetInfo` does.

    >>> synsets()[0]
    'n01440764'
    """
    return tuple(_text("imagenet_synsets.txt").splitlines())


@cache
def descriptions() -> tuple[str, ...]:
    """Return the names of the 1000 classes, in order.

    >>> descriptions()[0]
    'tench, Tinca tinca'
    """
    lemmas = dict(csv.reader(_text("imagenet_synset_to_lemma.txt").splitlines(), delimiter="\t"))
    return tuple(lemmas[synset] for synset in synsets())


def _text(name: str) -> str:
    spec = find_spec("timm")
    assert spec is not None, "timm is a dependency"
    assert spec.submodule_search_locations, "timm is a package"
    return (Path(spec.submodule_search_locations[0]) / "data" / "_info" / name).read_text(encoding="utf-8")
