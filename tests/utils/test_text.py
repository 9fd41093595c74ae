"""Names in messages: shown, never obeyed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from stvit_cli.data.imagefolder import find_images
from stvit_cli.data.label_maps import open_label_map
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, first_line

SPOOF = "x\nstvit: all is well"


def test_names_in_lists_and_suggestions_cannot_make_lines_of_their_own() -> None:
    assert first_few(["a\nstvit: all is well", "b\x1b]0;x\x07"]) == "a\\nstvit: all is well, b\\x1b]0;x\\x07"
    assert did_you_mean("cat\n1", ["cat\n2"]) == " Did you mean 'cat\\n2'?"


def test_the_name_of_a_class_or_label_map_adds_no_line_to_a_message(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", f"{SPOOF}/1.png"):
        for split in ("train", "val") if name[0] in "ab" else ("val",):
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(tmp_path / split / name)
    with pytest.raises(UserError) as caught:
        find_images(tmp_path)
    assert "x\\nstvit: all is well" in str(caught.value)
    assert SPOOF not in str(caught.value)
    (tmp_path / "val" / SPOOF).rename(tmp_path / "train" / SPOOF)
    notes = "".join(note for images in find_images(tmp_path) for note in images.notes)
    assert "x\\nstvit: all is well" in notes
    assert SPOOF not in notes
    with pytest.raises(UserError) as caught:
        open_label_map(tmp_path / SPOOF)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("text", "line"), [("disk full\nat row 3", "disk full"), ("\n  no key\n", "no key"), ("", "OSError")])
def test_an_exception_gives_a_line_also_where_it_says_nothing(text: str, line: str) -> None:
    assert first_line(OSError(text)) == line
