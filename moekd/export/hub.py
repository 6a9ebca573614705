"""A student on the Hugging Face Hub: the chosen formats and the model card in one commit.

The first format is at the top of the repository, where its library looks for it; each other one has a folder of its
name. Uploads go through huggingface_hub, with its login; the token is neither read nor written here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..atomic import write_text
from ..errors import ConfigError, DataError
from .formats import check_format, export

CARD = "README.md"
NO_CARD = ("torch_export",)


@dataclass(frozen=True)
class Upload:
    """What goes to the Hub, or went there.

    Attributes:
        repo: "owner/name".
        files: path in the repository and size in bytes.
        url: address of the commit; None for a dry run.
    """

    repo: str
    files: dict[str, int]
    url: str | None = None


def push(
    run: Path | str,
    repo: str,
    formats: Sequence[str] = ("safetensors",),
    *,
    private: bool = False,
    update: bool = False,
    dry_run: bool = False,
    endpoint: str | None = None,
    seeds: Sequence[Path | str] = (),
    **options: Any,
) -> Upload:
    """Upload a run's student to the Hugging Face Hub.

    Args:
        run: run folder or student folder.
        repo: "owner/name".
        formats: formats of `moekd export`; the first is at the top of the repository.
        private: make a private repository.
        update: add a commit to a repository that exists; without it, such a repository is left as it is.
        dry_run: write and check all files, upload none.
        endpoint: address of the Hub; default that of huggingface_hub (`HF_ENDPOINT`).
        seeds: finished runs of the same recipe with other seeds; the card then tells means and intervals.
        options: of the format onnx, see `export`.

    Raises:
        ConfigError: a name that the Hub does not take, or formats that don't go together.
        ModelError: a format can't express the student.
        DataError: no login, the repository exists, or the upload failed.
    """
    check_repo(repo)
    if not formats or len(set(formats)) != len(formats):
        raise ConfigError(f"formats: expected different formats, found {', '.join(formats) or 'none'}")
    for format in formats:
        check_format(format)
    if not dry_run and get_token() is None:
        raise DataError("no login for the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN")
    with tempfile.TemporaryDirectory(prefix="moekd-") as temporary:
        folder = stage(Path(run), repo, formats, Path(temporary), options, seeds)
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        url = None if dry_run else _upload(folder, repo, private, update, endpoint)
    return Upload(repo, files, url)


def check_repo(repo: str) -> None:
    """Refuse a name that is no "owner/name".

    Raises:
        ConfigError: with the reason.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"repo: {error}") from error
    if repo.count("/") != 1:
        raise ConfigError(f"repo: expected owner/name, found '{repo}'")


def stage(
    run: Path,
    repo: str,
    formats: Sequence[str],
    temporary: Path,
    options: dict[str, Any],
    seeds: Sequence[Path | str] = (),
) -> Path:
    """Write the files of a repository into a folder and return it."""
    folder = temporary / "repository"
    for index, format in enumerate(formats):
        given = options if format == "onnx" else {}
        export(run, format, folder if index == 0 else folder / format, seeds=seeds, **given)
    for card in folder.rglob(CARD):
        inside = card.parent.relative_to(folder).as_posix()
        write_text(card, _named(card.read_text(encoding="utf-8"), repo, inside))
    if not (folder / CARD).is_file():
        student = next(place for place in (run / "student" / CARD, run / CARD) if place.is_file())
        shutil.copyfile(student, folder / CARD)
    others = [format for format in formats[1:] if format not in NO_CARD]
    if len(formats) > 1:
        lines = [
            f"- `{format}/`" + (f": see [its page]({format}/{CARD})" if format in others else "")
            for format in formats[1:]
        ]
        text = (folder / CARD).read_text(encoding="utf-8").rstrip()
        write_text(folder / CARD, f"{text}\n\n## Other formats in this repository\n\n" + "\n".join(lines) + "\n")
    return folder


def _named(text: str, repo: str, inside: str) -> str:
    """Put the name of the repository where a card says FOLDER; a folder inside it has to be downloaded first."""
    if inside == ".":
        return text.replace('"local-dir:FOLDER"', f'"hf-hub:{repo}"').replace('"FOLDER"', f'"{repo}"')
    return text.replace("FOLDER", inside)


def _upload(folder: Path, repo: str, private: bool, update: bool, endpoint: str | None) -> str:
    """Make the repository and add one commit; returns its address.

    Raises:
        DataError: whatever goes wrong there: the libraries below have many errors of their own.
    """
    api = HfApi(endpoint=endpoint, library_name="moekd")
    try:
        if not update or not api.repo_exists(repo):
            api.create_repo(repo, private=private)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload the student")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 409:
            raise DataError(f"{repo} exists already on the Hub; --update adds a commit to it") from error
        if status in (401, 403):
            raise DataError(f"the Hub refuses to write {repo} ({status}): log in as somebody who may") from error
        raise DataError(f"the upload to {repo} failed: {_short(error)}") from error
    except Exception as error:
        raise DataError(f"the upload to {repo} failed: {_short(error)}") from error
    return str(commit.commit_url)


def _short(error: Exception) -> str:
    """Return the first line of an error, without the token, should it be there."""
    line, token = (str(error).strip().splitlines() or [type(error).__name__])[0], get_token()
    return line.replace(token, "***") if token else line
