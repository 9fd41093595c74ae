"""Files of recipes: shipped ones, found by name, and the user's, found by path. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stvit_cli.errors import UserError
from stvit_cli.utils.shipped import recipes_folder
from stvit_cli.utils.text import did_you_mean

_MAX_BYTES = 1_000_000


def list_recipes() -> list[Path]:
    """Return the files of the shipped recipes, sorted by name: those of the installed package, or of the checkout."""
    return sorted(recipes_folder().glob("*.yaml"))


def find(name_or_path: str | Path) -> Path:
    """Return the file of a recipe: a shipped one by its name, or any by its path. Raises UserError where there is none."""
    shipped = {path.stem: path for path in list_recipes()}
    path = Path(name_or_path)
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_dir():
            raise UserError(f"{path} is a folder; expected the file of a recipe.")
        if not path.exists():
            raise UserError(f"There is no recipe file {path}.{_meant(path, shipped)}")
        return path
    raise UserError(
        f"There is no recipe named {str(name_or_path)!r}.{did_you_mean(str(name_or_path), shipped)}\n"
        f"Shipped: {', '.join(shipped)}. A file of your own is given by its path, such as ./mine.yaml"
    )


def _meant(path: Path, shipped: Iterable[str]) -> str:
    """Suggest what was meant by a file that is not there: one beside it, or a shipped recipe, which goes by its name alone."""
    if path.stem in shipped:
        return f" Did you mean '{path.stem}'?"
    beside = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return did_you_mean(str(path), beside) or did_you_mean(path.stem, shipped)


def read(path: Path) -> str:
    """Return the text of a recipe file. Raises UserError where it cannot be read."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is larger than a megabyte; expected the file of a recipe.")
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
