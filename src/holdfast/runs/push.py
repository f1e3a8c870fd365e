"""A safeguarded checkpoint to the Hugging Face hub, with its card: private unless told otherwise, and never attacked weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.folder import CARD, generation_settings, weight_files
from holdfast.core.reading import excerpt, line
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint

if TYPE_CHECKING:
    from huggingface_hub import HfApi

README = "README.md"

_TAMPERED = "TAMPERED"
"""Begins the name of a folder of attacked weights, and the heading of its card."""

_REPOSITORY = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Upload:
    """What would be uploaded."""

    folder: Path
    repository: str
    files: tuple[str, ...]
    size: int
    """bytes"""


def plan_upload(model: str, repository: str) -> Upload:
    """Check a checkpoint and list what of its folder would be uploaded.

    Args:
        model: the checkpoint's folder.
        repository: OWNER/NAME on the hub.

    Raises:
        HoldfastError: the folder is no checkpoint that holdfast wrote, its weights are attacked or are not those of its card, it
            has no README.md, or the repository has no such name.
    """
    folder = Path(model)
    if not _REPOSITORY.fullmatch(repository):
        raise HoldfastError(f"{excerpt(repository)} is no repository of the hub; give OWNER/NAME")
    if not folder.is_dir():
        raise HoldfastError(f"there is no model folder {model}; give a checkpoint that holdfast safeguard wrote")
    _refuse_attacked(folder)
    card = Checkpoint(model).card
    if not card:
        raise HoldfastError(
            f"{folder} has no {CARD}, so nothing says what it is; push a checkpoint that holdfast safeguard wrote"
        )
    if card.get("digest") not in (None, Checkpoint(model).digest):
        raise HoldfastError(
            f"the weights in {folder} are not those that its {CARD} describes; build the checkpoint again"
        )
    weight_files(folder)
    generation_settings(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_private(path.relative_to(folder)))
    if folder / README not in files:
        raise HoldfastError(f"{folder} has no {README}; write one with holdfast card AUDIT --out {folder / README}")
    links = [path for path in files if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())]
    if links:
        raise HoldfastError(f"{links[0]} is a link to a file outside the checkpoint; copy the file, or remove the link")
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return Upload(folder, repository, names, sum(path.stat().st_size for path in files))


def _refuse_attacked(folder: Path) -> None:
    readme = folder / README
    head = readme.read_text(encoding="utf-8", errors="replace")[:1000] if readme.is_file() else ""
    named = any(part.startswith(_TAMPERED) for part in folder.resolve().parts)
    if named or f"# {_TAMPERED}" in head or Checkpoint(str(folder)).card.get("tampered"):
        raise HoldfastError(
            f"{folder} holds attacked weights, whose safeguard may be gone; attacked weights are never uploaded"
        )


def _is_private(path: Path) -> bool:
    """Whether a file is a lock, a temporary, or another that starts with a point."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def upload(plan: Upload, *, public: bool = False, api: HfApi | None = None) -> str:
    """Upload what was planned, and return the address of the commit.

    A repository that is there already keeps its visibility: one that is public is not taken for a private upload.

    Args:
        plan: of `plan_upload`.
        public: whether everybody may see the repository.
        api: the hub's client; None: one with the user's own login.

    Raises:
        HoldfastError: the repository is public and the upload is not, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub: Any = api or HfApi()
    try:
        hub.create_repo(plan.repository, repo_type="model", private=not public, exist_ok=True)
        if not public and not hub.model_info(plan.repository).private:
            raise HoldfastError(
                f"{plan.repository} is public on the hub; add --public if it should be, or give another repository"
            )
        commit = hub.upload_folder(
            repo_id=plan.repository, repo_type="model", folder_path=plan.folder, allow_patterns=list(map(_literal, plan.files)),
            commit_message="A safeguarded checkpoint, by holdfast",
        )  # fmt: skip
    except HoldfastError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:  # OSError: no network; ValueError: no login
        raise HoldfastError(
            f"{plan.repository} was not uploaded ({line(str(error)) or type(error).__name__}); check the network, your login "
            "(hf auth login) and your rights, and run the same command again"
        ) from error
    return str(getattr(commit, "commit_url", commit))


def _literal(name: str) -> str:
    """A file's name as a pattern that matches that file alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
