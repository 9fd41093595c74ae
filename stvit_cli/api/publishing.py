"""Publish a run: `push` to the Hugging Face Hub, or the same files into a folder."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvit_cli.errors import UserError

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class PushResult:
    """What `push` wrote.

    Attributes:
        target: how `load` and timm name it: ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``.
        url: the page of the commit; empty for a folder.
        files: the names of the files.
        licence: the licence that the card states; None for none.
    """

    target: str
    url: str
    files: tuple[str, ...]
    licence: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit push --json` writes them."""
        return {"target": self.target, "url": self.url, "files": list(self.files), "license": self.licence}


def push(run: AnyPath, repo: str, *, private: bool = False, license: str | None = None) -> PushResult:
    """Upload a run's best weights with a model card to the Hugging Face Hub.

    `load` and, for classifiers, ``timm.create_model("hf-hub:OWNER/NAME", pretrained=True)`` read them again. The files are the
    weights, timm's ``config.json``, the card ``README.md`` (that of the run directory, where you have changed it) and the recipe;
    none of them names a path of this machine.

    Args:
        run: the run directory.
        repo: ``OWNER/NAME``, or ``NAME`` of your own account, created if it is not there; or ``local-dir:FOLDER``, which writes
            the same files into a folder.
        private: whether a new repository is private.
        license: the licence of the weights, as the Hub names it, such as ``apache-2.0``. Nothing is claimed without it.

    Raises:
        UserError: no such run, no weights in it, no name of a repository, no token, no network, or the Hub refuses.

    Example:
        >>> push("runs/none", "local-dir:published")
        Traceback (most recent call last):
        stvit_cli.errors.UserError: runs/none is not the directory of a run: there is no such directory.
    """
    from stvit_cli.analysis.hub_folder import write_hub_folder
    from stvit_cli.engine.run_dir import RunDir
    from stvit_cli.models.weights.hub import hub_name, local_dir, require_repo_name
    from stvit_cli.utils.files import writing

    path, licence = Path(run), license
    RunDir(path).require_run()
    folder = local_dir(repo)
    if folder is not None:
        if folder.resolve() == path.resolve():
            raise UserError(f"{repo} is the run directory itself; expected another folder.")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files = write_hub_folder(path, folder, licence=licence)
        return PushResult(f"local-dir:{folder}", "", tuple(files), _stated_licence(folder))
    name = hub_name(repo) or repo
    require_repo_name(name, owner=False)
    with tempfile.TemporaryDirectory(prefix="stvit-push-") as temporary:
        return _upload(path, name, Path(temporary), private=private, licence=licence)


def _upload(path: Path, name: str, folder: Path, *, private: bool, licence: str | None) -> PushResult:
    from huggingface_hub import HfApi, ModelCard, get_token

    from stvit_cli import __version__
    from stvit_cli.analysis.hub_folder import write_hub_folder
    from stvit_cli.models.weights.hub import explained

    if get_token() is None:
        raise UserError(
            "There is no token of the Hugging Face Hub here: log in by `hf auth login`, or set HF_TOKEN.\n"
            "A token that may write: https://huggingface.co/settings/tokens"
        )
    write_hub_folder(path, folder, repo=name, licence=licence)  # before anything is made at the Hub
    api = HfApi(library_name="stvit", library_version=__version__)
    with explained(name, "written"):
        # The Hub refuses a card, as for a licence that it does not know, only when the repository is there.
        ModelCard.load(folder / "README.md", ignore_metadata_errors=True).validate()
        repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        if repo_id != name:  # the owner was left out, and is in the card's lines
            write_hub_folder(path, folder, repo=repo_id, licence=licence)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Weights of a run of stvit {__version__}")
    return PushResult(
        f"hf-hub:{repo_id}",
        str(commit.commit_url),
        tuple(sorted(file.name for file in folder.iterdir())),
        _stated_licence(folder),
    )


def _stated_licence(folder: Path) -> str | None:
    """Return the licence at the head of a folder's card."""
    from huggingface_hub import ModelCard

    stated = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.license
    return stated if isinstance(stated, str) else None
