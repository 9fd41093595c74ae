"""The one place that lists images: what is left out, what is followed, what is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stvit_cli.data.file_listing import left_out_note, list_files
from stvit_cli.data.image_paths import list_images
from stvit_cli.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images, what systems leave behind, and links of all kinds."""
    root = tmp_path / "root"
    for name in ("1.jpg", "sub/2.PNG", ".3.jpg", ".hidden/4.jpg", "__MACOSX/5.jpg", "sub/._2.PNG", "6.heic", "7", "Thumbs.db"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "8.jpg").touch()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "9.jpg").symlink_to(tmp_path / "elsewhere" / "deep" / "8.jpg")
    (root / "sub" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    return root


def test_links_are_followed_without_end_and_hidden_files_left_out(root: Path) -> None:
    listing = list_files(root)
    once = {path for path in listing.paths if path.count("/") < 2}
    assert once == {"1.jpg", "9.jpg", "sub/2.PNG"}
    assert "linked/deep/8.jpg" in listing.paths
    # Each way into the folder ends where it would come back to a folder that it is in.
    assert len(listing.paths) < 10
    assert not any("MACOSX" in path or "/." in f"/{path}" for path in listing.paths)
    assert listing.other_endings == {".heic": 1, "": 1}
    assert listing.broken_links == []


def test_broken_links_are_named_where_they_may_be_images(root: Path) -> None:
    for name in ("gone.jpg", "gone", "gone.txt", "self.png"):
        (root / name).symlink_to("self.png" if name == "self.png" else "nowhere")
    assert sorted(list_files(root).broken_links) == ["gone", "gone.jpg", "self.png"]


def test_a_folder_that_cannot_be_listed_is_named(root: Path) -> None:
    with pytest.raises(UserError, match="sub2: cannot be listed: No such file"):
        list_files(root, "sub2")


def test_what_was_left_out_is_said_in_a_line() -> None:
    assert left_out_note({}) == []
    (line,) = left_out_note({".heic": 3, "": 1})
    assert line.startswith("4 files were left out for the ending: 3 .heic, 1 without an ending. Images end in .jpg")


def test_predict_lists_a_folder_by_the_same_rules(root: Path) -> None:
    (root / "sub" / "gone.jpg").symlink_to("nowhere")
    (root / "sub" / "up").unlink()
    (root.parent / "elsewhere" / "back").unlink()
    said: list[str] = []
    found = [str(path.relative_to(root)) for path in list_images([root], said.append)]
    assert found == ["1.jpg", "9.jpg", "linked/deep/8.jpg", "sub/2.PNG", "sub/gone.jpg"]
    assert len(said) == 1
    assert "2 files were left out for the ending: 1 without an ending, 1 .heic" in said[0]
    # named in its turn, so that what stands beside it on the command line is answered
    assert list_images([root / "sub" / "gone.jpg", root / "1.jpg"]) == [root / "sub" / "gone.jpg", root / "1.jpg"]
    with pytest.raises(UserError, match="no image in this folder"):
        list_images([_empty(root)])


def _empty(root: Path) -> Path:
    (root / "empty" / "__MACOSX").mkdir(parents=True)
    (root / "empty" / "__MACOSX" / "1.jpg").touch()
    return root / "empty"


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).touch()
    assert list_files(tmp_path).paths == [name]
