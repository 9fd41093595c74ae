"""What is published: built by `python -m build`, checked by twine, installed into new environments, used outside the checkout.

    pytest -m release tests/release

The new environments take the libraries from this one by a .pth file, and nothing is downloaded. stvit itself is the wheel's, or
is built from the sdist there. The wheel is used where no C++ compiler can be found, the sdist where there may be one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

from stvit_cli import __version__

pytestmark = pytest.mark.release
ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "tests" / "images" / "digit-3.png"
SHORT = ["data.image_size=32", "data.num_workers=0", "schedule.steps=4", "schedule.warmup_epochs=0", "train.device=cpu"]
"""The quickstart in seconds."""


def run(*words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX")} | variables
    ended = subprocess.run([*words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(map(str, words))}\n{ended.stdout[-1000:]}\n{ended.stderr[-3000:]}"
    return ended


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sdist, and the wheel that is built from the sdist, as the workflow builds them."""
    for name in ("build", "twine"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def environment(request: pytest.FixtureRequest, dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with one of them, as the folder of its programs."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    run(sys.executable, "-m", "venv", folder, cwd=dist)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (own / "libraries.pth").write_text("\n".join(paths), encoding="utf-8")  # without what .pth files there lead to
    pattern = "*.whl" if request.param == "wheel" else "*.tar.gz"
    (archive,) = dist.glob(pattern)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--disable-pip-version-check", "--quiet"]
    run(folder / "bin" / "python", "-m", "pip", "install", *options, archive, cwd=dist)
    return folder / "bin"


def test_twine_finds_nothing_wrong(dist: Path) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist).stdout
    assert said.count("PASSED") == 2, said


def test_the_sdist_holds_what_its_tests_need(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "UPGRADING.md", "CITATION.cff", "PKG-INFO"} <= names
    assert {
        "tests/conftest.py",
        "recipes/quickstart.yaml",
        "docs/platforms.md",
        ".ci/check",
        "stvit_cli/data/native/pixels.cpp",
    } <= names
    assert not [name for name in names if name.startswith((".dev", ".git/", "runs/", "build/", "dist/")) or "__pycache__" in name]


def test_every_requirement_is_met_here() -> None:
    """The environments have no dependencies of their own: what the package requires has to be in this one."""
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in metadata.requires("stvit") or () if "extra ==" not in text]
    assert len(required) > 10
    for requirement in required:
        assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True), str(requirement)


def test_the_quickstart_runs_outside_the_checkout(environment: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    stvit, variables = environment / "stvit", {}
    has_no_compiler = "wheel" in request.node.callspec.id
    if has_no_compiler:  # nothing is in PATH, and nothing is compiled already
        variables = {"PATH": str(environment), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    where = "import stvit_cli, stvit_cli.utils.shipped as s; print(stvit_cli.__file__, s.recipes_folder(), s.weights_folder())"
    python = environment / "python"
    for path in run(python, "-c", where, cwd=tmp_path, **variables).stdout.split():
        assert Path(path).is_relative_to(environment.parent), path
    assert run(stvit, "--version", cwd=tmp_path, **variables).stdout == f"stvit {__version__}\n"
    assert "quickstart" in run(stvit, "recipes", "list", cwd=tmp_path, **variables).stdout
    predicted = run(stvit, "predict", IMAGE, "--weights", "stvit-nano.digits", cwd=tmp_path, **variables)
    assert "digit-3.png  3 " in predicted.stdout

    trained = run(stvit, "train", "--recipe", "quickstart", "--output", "run", *SHORT, cwd=tmp_path, **variables)
    if has_no_compiler:
        assert trained.stderr.count("no C++ compiler here (c++)") == 1, trained.stderr
    assert "top-1" in run(stvit, "eval", "run", "data.num_workers=0", cwd=tmp_path, **variables).stdout
    sample = tmp_path / "run" / "samples" / "digit-3.png"
    assert "digit-3.png" in run(stvit, "predict", sample, "--weights", "run", cwd=tmp_path, **variables).stdout
    assert (tmp_path / "run" / "report.html").is_file()
