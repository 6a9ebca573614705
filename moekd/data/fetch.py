"""Fetching remote files: https (and http on this machine), and repositories of the Hugging Face Hub at a commit."""

from __future__ import annotations

import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import DataError

logger = logging.getLogger(__name__)

_TRIES = 3
_TIMEOUT = 60.0
_CHUNK = 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB = re.compile(r"hf://datasets/(?P<name>[^/@]+(?:/[^/@]+)?)@(?P<revision>[^/]+)/(?P<file>.+)")
_LOCAL = ("localhost", "127.0.0.1", "::1")


def fetch_url(address: str, target: Path, limit: int) -> dict[str, Any]:
    """Write a file to `target`; tried three times.

    Returns:
        Size, and the server's ETag or time of the last change.

    Raises:
        DataError: http to another machine, no connection, an error of the server, a cut or an oversized file.
    """
    _check_address(address)
    for attempt in range(_TRIES):
        try:
            return _download(address, target, limit)
        except HTTPError as error:
            if (error.code < 500 and error.code != 429) or attempt == _TRIES - 1:
                raise DataError(f"{address} can't be fetched: the server says {error.code} {error.reason}") from error
            reason = str(error)
        except (URLError, OSError) as error:
            if attempt == _TRIES - 1:
                cause = getattr(error, "reason", error)
                raise DataError(f"{address} can't be fetched: {cause}; is this machine offline?") from error
            reason = str(error)
        logger.warning("%s: %s; trying again", address, reason)
        time.sleep(0.2 * 4**attempt)
    raise AssertionError("not reached")


def fetch_hub(address: str, target: Path, limit: int) -> dict[str, Any]:
    """Write a file of a data set on the Hugging Face Hub to `target`.

    Args:
        address: `hf://datasets/NAME@COMMIT/FILE`.
        target: where it goes.
        limit: largest size in bytes.

    Returns:
        Commit and size.

    Raises:
        DataError: no commit is named, or the file can't be had.
    """
    from huggingface_hub import hf_hub_download

    name, revision, file = split_hub_address(address)
    folder = target.with_name(f"{target.name}.hub")
    try:
        got = Path(hf_hub_download(name, file, repo_type="dataset", revision=revision, local_dir=folder))
        size = got.stat().st_size
        if size > limit:
            raise DataError(f"{address} has {size} bytes, more than the cache may hold ({limit}): raise 'cache_gb'")
        shutil.move(got, target)
    except (OSError, ValueError) as error:
        raise DataError(f"{address} can't be fetched: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"commit": revision, "size": size}


def split_hub_address(address: str) -> tuple[str, str, str]:
    """Return name, commit and file of `hf://datasets/NAME@COMMIT/FILE`.

    Raises:
        DataError: another form, or a branch or tag, which can move.
    """
    found = _HUB.fullmatch(address)
    if found is None:
        raise DataError(f"{address}: expected hf://datasets/NAME@COMMIT/FILE")
    return found["name"], check_commit(found["name"], found["revision"]), found["file"]


def check_commit(name: str, revision: str | None) -> str:
    """Return the commit of a data set on the Hugging Face Hub.

    Raises:
        DataError: none is given, or a branch or tag, which can move.
    """
    if revision is None or not _COMMIT.fullmatch(revision):
        raise DataError(
            f"revision: '{name}' is no local folder; to take it from the Hugging Face Hub, name the commit (40 hex "
            f"digits) that the data shall have, found {revision!r}"
        )
    return revision


class _SafeRedirects(HTTPRedirectHandler):
    """Follows redirects to addresses that could have been given directly."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise DataError(f"{address}: expected https (or http on this machine)")


def _download(address: str, target: Path, limit: int) -> dict[str, Any]:
    done = 0
    with build_opener(_SafeRedirects).open(address, timeout=_TIMEOUT) as answer, target.open("wb") as file:
        length = answer.headers.get("Content-Length")
        if length is not None and int(length) > limit:
            raise DataError(f"{address} has {length} bytes, more than the cache may hold ({limit}): raise 'cache_gb'")
        while chunk := answer.read(_CHUNK):
            done += len(chunk)
            if done > limit:
                raise DataError(f"{address} has more bytes than the cache may hold ({limit}): raise 'cache_gb'")
            file.write(chunk)
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if length is not None and done != int(length):
        raise URLError(f"the connection broke off after {done} of {length} bytes")
    return {"size": done, "version": version}
