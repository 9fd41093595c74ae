"""A wheel built from the repository works outside it: the command, the recipes, the digits, the type hints."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling")


def run(*words: str | Path, cwd: Path, path: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    run("-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("stvit-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel in a folder of its own. The libraries are this environment's; the package itself must come from here."""
    site = wheel.parent / "site"
    run("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", site, wheel, cwd=wheel.parent)
    return site


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2
    assert "stvit_cli" in tops
    ours = [path for path in (ROOT / "stvit_cli").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in ours} | {f"stvit_cli/{path.relative_to(ROOT)}" for path in recipes()}
    assert {name for name in names if name.startswith("stvit_cli/")} == expected
    assert {"stvit_cli/py.typed", "stvit_cli/data/digits.npz", "stvit_cli/recipes/quickstart.yaml"} <= names
    assert {f"stvit_cli/weights/stvit-nano.digits.{ending}" for ending in ("safetensors", "md")} <= names


def test_the_source_distribution_has_the_weights_too() -> None:
    from hatchling.builders.sdist import SdistBuilder

    names = {included.relative_path for included in SdistBuilder(str(ROOT)).recurse_included_files()}
    weights = {str(path.relative_to(ROOT)) for path in (ROOT / "stvit_cli" / "weights").iterdir()}
    assert {"tools/package_weights.py", "stvit_cli/weights/stvit-nano.digits.safetensors"} | weights <= names


def recipes() -> list[Path]:
    return sorted((ROOT / "recipes").glob("*.yaml"))


def test_it_runs_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    where = run("-c", "import stvit_cli; print(stvit_cli.__file__)", cwd=tmp_path, path=installed)
    assert Path(where.strip()).is_relative_to(installed)
    script = (installed / "bin" / "stvit").read_text()
    assert "from stvit_cli.cli import main" in script
    assert run(installed / "bin" / "stvit", "--version", cwd=tmp_path, path=installed).startswith("stvit ")


def test_it_brings_its_recipes_and_its_digits(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(run("-m", "stvit_cli", "recipes", "list", "--json", "-", cwd=tmp_path, path=installed))
    assert {recipe["name"] for recipe in listed} == {path.stem for path in recipes()}
    code = "from stvit_cli.data.digits import DigitImages; print(len(DigitImages(held_out=True)))"
    assert run("-c", code, cwd=tmp_path, path=installed).strip() == "360"


def test_it_brings_its_weights(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(run("-m", "stvit_cli", "weights", "list", "--json", "-", cwd=tmp_path, path=installed))
    assert "stvit-nano.digits" in [weights["name"] for weights in listed]
    assert all(Path(weights["path"]).is_relative_to(installed) for weights in listed)
