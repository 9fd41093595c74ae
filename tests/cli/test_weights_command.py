"""`stvit weights`, and the tool that puts a run's weights into the package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from stvit_cli import UserError
from stvit_cli.models.weights.file import read_info
from stvit_cli.utils import packaged_weights

ROOT = Path(__file__).parents[2]
NANO = "stvit-nano.digits"


@pytest.fixture(scope="module")
def package() -> Callable[[Path, str, Path], Path]:
    spec = importlib.util.spec_from_file_location("package_weights", ROOT / "tools" / "package_weights.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.package


def test_commands_list_and_show_them(stvit, tmp_path: Path) -> None:
    ended = stvit("weights", "list", "--json", tmp_path / "list.json")
    assert ended.code == 0
    assert NANO in ended.out
    assert NANO in (tmp_path / "list.json").read_text()
    shown = stvit("weights", "show", NANO)
    assert shown.out.startswith("---\nlicense: mit\n")
    refused = stvit("weights", "show", "stvit-nano.dgits")
    assert refused.code == 2
    assert "Did you mean 'stvit-nano.digits'?\nPackaged weights: " in refused.err


def test_a_run_is_packaged(tmp_path: Path, short_run: Path, package: Callable[[Path, str, Path], Path]) -> None:
    path = package(short_run, "stvit-nano.shapes-toy", tmp_path)
    assert path == tmp_path / "stvit-nano.shapes-toy.safetensors"
    listed = packaged_weights._read("stvit-nano.shapes-toy", path)
    assert (listed.images, listed.metric, listed.data_licence) == ("validation", "top1", "MIT")
    assert read_info(path).licence == "mit"
    for name, said in (("stvit-s.shapes", "expected stvit-nano.DATA"), ("stvit-nano.photos", "DATA begins with one of")):
        with pytest.raises(UserError, match=said):
            package(short_run, name, tmp_path)
