"""Class names that no weights file could hold are found before a run, not at its first save."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from stvit_cli import tasks
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io


def test_a_class_name_that_is_not_utf8_is_refused_before_training(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "caf\udce9"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / split / name / "0.png")
    recipe = recipe_io.load("quickstart", ["data.kind=imagefolder", f"data.dir={tmp_path}", "model.name=stvit-nano"])
    with pytest.raises(UserError, match=r"class 0, 'caf\\udce9', is not UTF-8") as caught:
        tasks.build(recipe)
    assert "mv $'caf\\xe9' NAME" in str(caught.value)
