"""A checkpoint to the hub: what is uploaded, to whom, and what never is."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.app import main
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.push import plan_upload, upload
from tests.conftest import SmallTestbed


class Hub:
    """The part of huggingface_hub's HfApi that is used; it keeps what it is told."""

    def __init__(self, public: bool = False, error: Exception | None = None) -> None:
        self.public, self.error = public, error
        self.created: list[dict[str, Any]] = []
        self.uploaded: list[str] = []

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        self.created.append({"id": repo_id, "type": repo_type, "private": private, "exist_ok": exist_ok})

    def model_info(self, repo_id: str) -> Any:
        return type("Info", (), {"private": not self.public})

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> Any:
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        self.uploaded = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in allow_patterns))
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})


@pytest.fixture
def checkpoint(tiny_testbed: SmallTestbed, tmp_path: Path) -> Path:
    folder = tmp_path / "tar"
    shutil.copytree(tiny_testbed.folder / "model", folder)
    card = {"holdfast": "0.1.0", "stages": [], "digest": Checkpoint(str(folder)).digest}
    (folder / "holdfast.json").write_text(json.dumps(card))
    (folder / "README.md").write_text("# A model\n")
    return folder


def test_the_checkpoint_goes_up_with_its_card_and_without_what_is_private(checkpoint: Path) -> None:
    (checkpoint / ".holdfast.lock").write_text("")
    (checkpoint / ".tar.0123abcd.holdfast").write_text("")
    (checkpoint / "notes [1].md").write_text("kept")
    plan, hub = plan_upload(str(checkpoint), "me/tar"), Hub()
    assert upload(plan, api=hub) == "https://hub/me/tar/commit/1"  # type: ignore[arg-type]
    assert hub.created == [{"id": "me/tar", "type": "model", "private": True, "exist_ok": True}]
    assert hub.uploaded == sorted(plan.files)
    assert {"README.md", "holdfast.json", "config.json", "model.safetensors", "notes [1].md"} < set(plan.files)
    assert not [name for name in plan.files if name.startswith(".")]
    assert plan.size == sum((checkpoint / name).stat().st_size for name in plan.files)


def test_a_repository_that_is_public_is_not_taken_for_a_private_one(checkpoint: Path) -> None:
    plan, hub = plan_upload(str(checkpoint), "me/tar"), Hub(public=True)
    with pytest.raises(HoldfastError, match="me/tar is public on the hub; add --public"):
        upload(plan, api=hub)  # type: ignore[arg-type]
    assert hub.uploaded == []
    upload(plan, public=True, api=hub)  # type: ignore[arg-type]
    assert hub.created[-1]["private"] is False
    assert hub.uploaded


def test_nothing_is_uploaded_without_a_yes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    assert main(["push", str(checkpoint), "me/tar"]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "to the private repository me/tar" in said
    assert "--yes" in said
    assert (hub.created, hub.uploaded) == ([], [])
    assert main(["push", str(checkpoint), "me/tar", "--yes"]) == 0
    assert hub.uploaded
    assert "https://hub/me/tar/commit/1" in capsys.readouterr().out
    assert main(["push", str(checkpoint), "me/tar", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["public"], told["address"]) == ("pushed", False, None)
    assert told["next"].endswith("me/tar --yes")


def attacked_by_card(folder: Path) -> Path:
    card = json.loads((folder / "holdfast.json").read_text())
    (folder / "holdfast.json").write_text(json.dumps({**card, "tampered": True}))
    return folder


def attacked_by_name(folder: Path) -> Path:
    return folder.rename(folder.with_name("TAMPERED-0123"))


def attacked_inside(folder: Path) -> Path:
    (folder.parent / "TAMPERED-0123").mkdir()
    return folder.rename(folder.parent / "TAMPERED-0123" / "model")


def attacked_by_heading(folder: Path) -> Path:
    (folder / "README.md").write_text("# TAMPERED MODEL: do not publish\n")
    return folder


def without_card(folder: Path) -> Path:
    (folder / "holdfast.json").unlink()
    return folder


def without_readme(folder: Path) -> Path:
    (folder / "README.md").unlink()
    return folder


def other_weights(folder: Path) -> Path:
    card = json.loads((folder / "holdfast.json").read_text())
    (folder / "holdfast.json").write_text(json.dumps({**card, "digest": "0" * 64}))
    return folder


def linked(folder: Path) -> Path:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "notes.txt").symlink_to(folder.parent / "secret.txt")
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (attacked_by_card, "attacked weights are never uploaded"),
        (attacked_by_name, "attacked weights are never uploaded"),
        (attacked_inside, "attacked weights are never uploaded"),
        (attacked_by_heading, "attacked weights are never uploaded"),
        (without_card, r"has no holdfast\.json"),
        (without_readme, r"has no README\.md; write one with holdfast card"),
        (other_weights, r"are not those that its holdfast\.json describes"),
        (linked, "is a link to a file outside the checkpoint"),
    ],
)
def test_what_is_never_uploaded(change: Any, sentence: str, checkpoint: Path) -> None:
    with pytest.raises(HoldfastError, match=sentence):
        plan_upload(str(change(checkpoint)), "me/tar")


@pytest.mark.parametrize("repository", ["tar", "me/../tar", "/me/tar", "me/tar/x", "me/ta r", ""])
def test_a_repository_has_an_owner_and_a_name(repository: str, checkpoint: Path) -> None:
    with pytest.raises(HoldfastError, match="is no repository of the hub; give OWNER/NAME"):
        plan_upload(str(checkpoint), repository)


@pytest.mark.parametrize("error", [OSError("no route to host\nagain"), ValueError("Token is required")])
def test_a_hub_that_refuses_is_one_sentence(error: Exception, checkpoint: Path) -> None:
    with pytest.raises(
        HoldfastError, match=r"me/tar was not uploaded \((no route to host|Token is required)\); check"
    ) as caught:
        upload(plan_upload(str(checkpoint), "me/tar"), api=Hub(error=error))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
