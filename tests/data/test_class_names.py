from __future__ import annotations

from pathlib import Path

import pytest

from stvit_cli.data.class_names import read_class_names
from stvit_cli.errors import UserError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\nsea lion\n\n", ("cat", "sea lion")),
        ("0 cat\n1 sea lion\n", ("cat", "sea lion")),
        ("2: sea lion\r\n1: cat\r\n", ("cat", "sea lion")),
        ("\ufeffcat\ndog", ("cat", "dog")),
        ("2 legs\n4 legs\n", ("2 legs", "4 legs")),  # names that begin with numbers
        ("0\n1\n2\n", ("0", "1", "2")),
    ],
)
def test_a_name_a_line_with_or_without_its_number(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert read_class_names("names.txt", tmp_path) == names
    assert read_class_names(tmp_path / "names.txt") == names
    assert read_class_names("names.txt", tmp_path / "names.txt") == names  # data.dir may be a table


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"data\.class_names_file: there is no file .*names\.txt"),
        (b"\n\n", r"names\.txt has no class names"),
        (b"cat\ndog\ncat\n", r"names\.txt, line 3: 'cat' is there twice"),
        (b"caf\xe9\n", r"names\.txt, line 1: this is not UTF-8"),
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_class_names("names.txt", tmp_path)
