"""The commands that README and docs tell a reader to type are there, with their options and keys; Python in them compiles."""

from __future__ import annotations

import re

import pytest
from helpers.snippets import PAGES, ROOT, commands, complaint

PYTHON = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    found = sorted(set(commands((ROOT / page).read_text(encoding="utf-8"))))
    assert [f"stvit {words}: {wrong}" for words in found if (wrong := complaint(words))] == []


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles(page: str) -> None:
    for match in PYTHON.finditer((ROOT / page).read_text(encoding="utf-8")):
        compile(re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE), page, "exec")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```bash\nstvit train --recipe a  # b\n```\n", ["train --recipe a # b"]),
        ("```bash\npip install x && CUDA_VISIBLE_DEVICES=0 stvit env\n```\n", ["env"]),
        ("```bash\ntorchrun --nproc-per-node 8 -m stvit_cli train \\\n    --recipe a\n```\n", ["train --recipe a"]),
        ("See `stvit recipes\nlist` and `stvit_cli.load`.", ["recipes list"]),
        ("```python\nstvit train\n```\n", []),
    ],
)
def test_commands_are_found(text: str, words: list[str]) -> None:
    assert list(commands(text)) == words


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("train --recipe quickstart optim.lr=1e-3 --dry-run  # as it is", None),
        ("train --recipes quickstart", "--recipes"),
        ("trian", "'trian'"),
        ("recipes lst", "'lst'"),
        ("train --recipe quickstart optim.rate=1", "'optim.rate'"),
        ("eval RUN --json", "--json"),
    ],
)
def test_what_is_not_there_is_noticed(words: str, wrong: str | None) -> None:
    found = complaint(words)
    assert found is None if wrong is None else wrong in str(found)
