"""``stvit env``: what a report needs, also where something is broken."""

from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from stvit_cli import __version__
from stvit_cli.analysis import collect_env as module
from stvit_cli.analysis.collect_env import collect_env
from stvit_cli.cli.env import as_text
from stvit_cli.models import kernels


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler, and no compiled library that was loaded before."""
    from stvit_cli.data import pixels

    monkeypatch.setattr(kernels, "_loaded", set())
    monkeypatch.setattr(kernels, "_unavailable", {})
    monkeypatch.setattr(pixels, "_loaded", [])
    monkeypatch.setattr(pixels, "_reasons", [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")


@pytest.mark.usefixtures("nothing_compiled")
def test_it_says_versions_machine_and_why_nothing_is_compiled(stvit, tmp_path: Path) -> None:
    ended = stvit("env", "--json", tmp_path / "env.json")
    assert ended.code == 0
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in ended.out.splitlines())
    assert lines["stvit"].startswith(__version__)
    assert lines["python"] == sys.version.split()[0]
    assert {"torch", "torchvision", "timm", "numpy", "pillow", "cpu", "memory", "/dev/shm", "gpu"} <= set(lines)
    assert "no C++ compiler here (no-such-compiler)" in ended.out
    found = json.loads((tmp_path / "env.json").read_text())
    assert list(found) == ["versions", "system", "cpu", "memory", "devices", "compiled", "caches", "variables"]
    if sys.platform == "linux" and "AVX2" in found["cpu"]["instruction_sets"]:
        assert found["compiled"]["cpu_kernels"] == found["compiled"]["resizing"] == "no C++ compiler here (no-such-compiler)"
    assert found["compiled"]["torchvision_operators"] is True
    assert found["caches"]["stvit"]["path"].endswith("cache/stvit")
    assert found["memory"]["total"] > found["memory"]["available"] > 0


@pytest.mark.usefixtures("nothing_compiled")
def test_a_torch_that_cannot_be_imported_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = collect_env()
    assert found["devices"] == found["compiled"]
    assert found["devices"].startswith("torch cannot be imported (ModuleNotFoundError: ")
    assert re.search("^devices  +torch cannot be imported", as_text(found), re.MULTILINE)


@pytest.mark.usefixtures("nothing_compiled")
def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(module, "_torchvision", fail)
    monkeypatch.setattr(module, "_system", fail)
    text = as_text(collect_env())
    for name in ("system", "torchvision's ops"):
        said = r"cannot be found out \(RuntimeError: operator torchvision::nms does not exist\)$"
        assert re.search(f"^{name}  +{said}", text, re.MULTILINE), text
    assert "\nmemory " in text


@pytest.mark.parametrize("how", ["not installed", "made for another numpy", "other pixels"])
def test_native_jpeg_is_what_images_are_decoded_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    from stvit_cli.data import jpeg

    monkeypatch.setattr(jpeg, "_decoder", jpeg._decoder.__wrapped__)
    monkeypatch.delitem(sys.modules, "simplejpeg", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(jpeg, "is_installed", lambda name: how != "not installed")
    raises = "raise ValueError('numpy.dtype size changed')" if how == "made for another numpy" else ""
    (tmp_path / "simplejpeg.py").write_text(f"{raises}\ndecode_jpeg = len\n")
    said = module._jpeg()
    monkeypatch.delitem(sys.modules, "simplejpeg", raising=False)
    assert (
        said
        == {
            "not installed": "simplejpeg is not installed: pip install 'stvit[jpeg]'",
            "made for another numpy": "simplejpeg cannot be imported (ValueError: numpy.dtype size changed)",
            "other pixels": "simplejpeg decodes to other pixels than this Pillow",
        }[how]
    )


def test_a_file_that_goes_meanwhile_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Entry:
        def __init__(self, size: int) -> None:
            self.size = size

        def is_dir(self, *, follow_symlinks: bool) -> bool:
            return False

        def is_file(self, *, follow_symlinks: bool) -> bool:
            return True

        def stat(self, *, follow_symlinks: bool) -> SimpleNamespace:
            if not self.size:
                raise FileNotFoundError
            return SimpleNamespace(st_size=self.size)

    monkeypatch.setattr(module.os, "scandir", lambda folder: nullcontext([Entry(1), Entry(0), Entry(2)]))
    assert list(module._sizes(tmp_path)) == [1, 2]


def test_the_home_directory_and_other_variables_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    cache = tmp_path / ".cache" / "stvit" / "kernels"
    cache.mkdir(parents=True)
    (cache / "kernels-0.so").write_bytes(bytes(3000))
    (cache / "loop").symlink_to(cache)
    found = module._caches()
    assert found["kernels"] == {"path": "~/.cache/stvit/kernels", "bytes": 3000}
    assert found["torch"]["bytes"] is None
    monkeypatch.setattr(module, "_import_error", lambda: "torch is left out here")
    everything = collect_env()
    assert everything["variables"]["OMP_NUM_THREADS"] == "1"
    assert "secret" not in json.dumps(everything)
    assert str(tmp_path) not in json.dumps(everything["caches"])
