"""ImageNet's lists of classes, against timm's own reading of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from stvit_cli.data.class_names import read_class_names
from stvit_cli.errors import UserError
from stvit_cli.utils.class_lists import CLASS_LISTS, class_list, words_of_classes

COUNTS = {
    "imagenet-1k": 1000,
    "imagenet-12k": 11_821,
    "imagenet-21k-p": 10_450,
    "imagenet-21k-miil": 11_221,
    "imagenet-21k-goog": 21_843,
    "imagenet-22k": 21_841,
}


def test_every_list_has_its_classes_once_with_words() -> None:
    assert {name: len(set(class_list(name))) for name in CLASS_LISTS} == COUNTS
    words = words_of_classes()
    assert all(words[synset] for name in CLASS_LISTS for synset in class_list(name))


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "imagenet-21k-p"])  # which timm has no name for
def test_lists_are_in_timm_s_order(name: str) -> None:
    info = ImageNetInfo(name)
    assert list(class_list(name)) == info.label_names()
    assert words_of_classes()[class_list(name)[7]] == info.index_to_description(7)


def test_a_list_is_named_where_a_file_is_and_a_file_of_that_name_wins(tmp_path: Path) -> None:
    assert len(read_class_names("imagenet-21k-p", tmp_path)) == 10_450
    with pytest.raises(UserError, match=r"there is no file .*imagenet-22\. Did you mean 'imagenet-22k'"):
        read_class_names("imagenet-22", tmp_path)
    (tmp_path / "imagenet-22k").write_text("cat\ndog\n")
    assert read_class_names("imagenet-22k", tmp_path) == ("cat", "dog")
