"""Weights on the Hugging Face Hub: ``hf-hub:OWNER/NAME``, with ``@REVISION``, and ``local-dir:FOLDER``, as timm names them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_line

WEIGHTS = "model.safetensors"
"""The weights in a repository, as timm and transformers name them."""

_HUB = re.compile(r"hf[-_]hub:")
_LOCAL = re.compile(r"local[-_]dir:")


def hub_name(name: str | Path) -> str | None:
    """Return the repository that a name of weights stands for, with its revision; None for a file or a folder.

    >>> hub_name("hf-hub:someone/flowers@v1"), hub_name("runs/flowers")
    ('someone/flowers@v1', None)
    """
    text = str(name)
    found = _HUB.match(text)
    return text[found.end() :] if found else None


def local_dir(name: str | Path) -> Path | None:
    """Return the folder that ``local-dir:FOLDER`` names; None for any other name.

    >>> local_dir("local-dir:flowers")
    PosixPath('flowers')
    """
    text = str(name)
    found = _LOCAL.match(text)
    return Path(text[found.end() :]).expanduser() if found else None


def download_weights(name: str) -> Path:
    """Return the weights file of a repository, downloaded once; without a network, the file of an earlier download.

    Args:
        name: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, a branch, a tag or a commit.

    Raises:
        UserError: there is no such repository, or none that may be read, no weights in it, or no network.
    """
    from huggingface_hub import hf_hub_download

    from stvit_cli import __version__

    repo, _, revision = name.partition("@")
    require_repo_name(repo)
    with explained(f"hf-hub:{name}", "read"):
        found = hf_hub_download(repo, WEIGHTS, revision=revision or None, library_name="stvit", library_version=__version__)
    return Path(found)


def require_repo_name(repo: str, *, owner: bool = True) -> None:
    """Raise UserError where ``repo`` is no name of a repository.

    Args:
        repo: expected to be ``OWNER/NAME``.
        owner: whether the owner must be there.
    """
    part = r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?"
    pattern = rf"{part}/{part}" if owner else rf"(?:{part}/)?{part}"
    if not re.fullmatch(pattern, repo, re.ASCII) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise UserError(
            f"'{repo}' is no name of a repository of the Hugging Face Hub; expected OWNER/NAME, such as someone/flowers:\n"
            "letters, digits, '-', '_' and '.', at most 96 in each part."
        )


@contextmanager
def explained(what: str, verb: str) -> Iterator[None]:
    """Turn the failures of huggingface_hub into UserErrors that say what to do.

    Args:
        what: the repository, for the message.
        verb: what was tried: read or written.
    """
    from huggingface_hub import errors

    login = "log in by `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{what}: its owner grants access one by one: ask for it on the repository's page, and {login}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{what}: there is no such repository, or it is private: check the name, or {login}.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{what}: the repository has no such revision; expected a branch, a tag or a commit after the @."
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(f"{what}: there is no {WEIGHTS} in the repository; `stvit push` writes one.") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = (error.server_message or first_line(error)).strip().splitlines()[0][:300]
        advice = f"\nThe token may not do that: {login}, with a token that may write." if status in (401, 403) else ""
        raise UserError(f"{what} cannot be {verb}: the Hub answers: {reason}{advice}") from error
    except UserError:
        raise
    except ValueError as error:  # what the Hub says of the card's head
        reason = "; ".join(line.strip(" -") for line in str(error).splitlines())[:300]
        raise UserError(f"{what} cannot be {verb}: {reason}") from error
    except Exception as error:
        if not _is_of_network(error):
            raise
        other = "A folder or a file does without: weights=FILE" if verb == "read" else "The same files here: local-dir:FOLDER"
        before = ", and it was not downloaded before" if verb == "read" else ""
        raise UserError(f"{what} cannot be {verb}: no network here, or HF_HUB_OFFLINE is set{before}.\n{other}") from error


def _is_of_network(error: Exception) -> bool:
    """Whether there is no way to the Hub. huggingface_hub has changed its HTTP library, so this goes by names."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "Timeout", "LocalEntryNotFoundError", "OfflineModeIsEnabled"})
