"""No name in a recipe, and no name of a recipe, leads out of the folder it is meant for."""

from __future__ import annotations

from pathlib import Path

import pytest

from stvit_cli.api.training import new_run_dir
from stvit_cli.errors import UserError
from stvit_cli.recipe.files import find, list_recipes


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "..", "", "a\0b", "a/b", "a\nb", "-x", "n" * 400, "\u00e9" * 400])
def test_new_run_stays_under_runs_whatever_its_recipe_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with new_run_dir(None, name) as run_dir:
        assert run_dir.resolve().parent == tmp_path / "runs"
        assert run_dir.is_dir()
        assert not run_dir.name.startswith((".", "-"))


@pytest.mark.parametrize("name", ["quickstart", "my run_2.b", "\u00e9tude"])
def test_ordinary_names_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with new_run_dir(None, name) as run_dir:
        assert run_dir.name.startswith(f"{name}-")


@pytest.mark.parametrize(
    "name", ["..", "../recipes/quickstart", "quickstart/../deit300", "quick\0start", "./quick\0start.yaml", ""]
)
def test_shipped_recipe_is_found_by_its_exact_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        find(name)
    assert find("quickstart") in list_recipes()


def test_path_that_the_user_gives_is_read_wherever_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path / "below")
    assert find("../mine.yaml").samefile(tmp_path / "mine.yaml")
    assert find(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
