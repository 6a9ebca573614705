"""Remote files: fetched one by one from a server on this machine into a folder of bounded size."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pytest_socket import enable_socket, socket_allow_hosts

from moekd.data import make_loader
from moekd.data.fetch import fetch_url, split_hub_address
from moekd.data.fields.image import ImageField
from moekd.data.shard_cache import ShardCache
from moekd.data.shards import expand, open_shards
from moekd.data.webdataset import WebDataset
from moekd.errors import DataError
from tests.data.tar_files import sample, write_shards, write_tar


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; names with `broken` fail, those with `cut` end early, `away` redirects to http elsewhere."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if "broken" in self.path:
            self.send_error(503)
        elif "away" in self.path:
            self.send_response(302)
            self.send_header("Location", "http://example.org/file.tar")
            self.end_headers()
        elif "cut" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    enable_socket()
    socket_allow_hosts(["127.0.0.1"])
    monkeypatch.setattr("moekd.data.fetch.time.sleep", lambda seconds: None)
    folder = tmp_path / "remote"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as made:
        made.asked, made.folder, made.address = [], folder, f"http://127.0.0.1:{made.server_port}"
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def cache(tmp_path, limit=2**30):
    return ShardCache(tmp_path / "cache", limit, {"http": fetch_url})


def kept(tmp_path):
    return sorted(path.name[17:] for path in (tmp_path / "cache").glob("*.tar"))


def test_remote_tar_files_give_what_local_ones_give(server, tmp_path, caplog):
    write_shards(server.folder, "train", 6, 5)
    split = {"train": "train-{0000..0005}.tar", "val": 0.1, "test": 0.1}
    options = {"fields": {"image": ImageField(8, column="png")}, "split": split, "label": "cls"}
    near = WebDataset(str(server.folder), **options)
    size = (server.folder / "train-0000.tar").stat().st_size
    gib = 3.5 * size / 2**30
    far = WebDataset(server.address, cache_dir=str(tmp_path / "cache"), cache_gb=gib, **options)
    assert "less than the 0.0 GiB of 5 files that are read together" in caplog.text
    assert far.fingerprint() == near.fingerprint()
    assert len(kept(tmp_path)) == 3, "the folder stays within its bounds"
    pairs = zip(*(make_loader(data.splits["train"], 6, shuffle=True, epoch=2) for data in (near, far)), strict=True)
    assert all((a["image"] == b["image"]).all() and (a["id"] == b["id"]).all() for a, b in pairs)
    assert len(kept(tmp_path)) <= 3
    before = len(server.asked)
    caplog.clear()
    again = WebDataset(server.address, cache_dir=str(tmp_path / "cache"), **options)
    assert not caplog.text
    assert again.fingerprint() == near.fingerprint()
    assert len(again.splits["train"]) == 24
    assert len(server.asked) - before <= 1, "indexes and labels are kept, one file is fetched for the shapes"


def test_a_file_is_fetched_once_by_many_readers(server, tmp_path):
    write_tar(server.folder / "a.tar", {"1": sample(1)})
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: cache(tmp_path).path(f"{server.address}/a.tar"), range(8)))
    assert len(set(paths)) == 1
    assert server.asked == ["/a.tar"]


def test_the_file_read_longest_ago_goes(server, tmp_path):
    for name in "abc":
        (server.folder / f"{name}.tar").write_bytes(name.encode() * 1000)
    store = cache(tmp_path, limit=2500)
    for name in "abac":
        assert store.path(f"{server.address}/{name}.tar").read_bytes() == name.encode() * 1000
    assert kept(tmp_path) == ["a.tar", "c.tar"]
    with pytest.raises(DataError, match=r"has 1000 bytes, more than the cache may hold \(900\): raise 'cache_gb'"):
        cache(tmp_path, limit=900).path(f"{server.address}/b.tar")


def test_files_of_others_are_left_alone(server, tmp_path):
    folder = tmp_path / "cache"
    (folder / "datasets").mkdir(parents=True)
    others = [folder / "notes.txt", folder / "0123456789abcdef-mine.tar", folder / ".x.tmp"]
    for path in others:
        path.write_bytes(b"x" * 5000)
        os.utime(path, (0, 0))
    old = folder / ".0123456789abcdef-a.tar.1.0a0a0a0a.tmp"
    old.write_bytes(b"left behind")
    os.utime(old, (0, 0))
    for name in "abc":
        (server.folder / f"{name}.tar").write_bytes(name.encode() * 1000)
        cache(tmp_path, limit=1500).path(f"{server.address}/{name}.tar")
    assert all(path.is_file() for path in others)
    assert not old.exists()
    assert [path.name[17:] for path in folder.glob("*-?.tar")] == ["c.tar"]


def test_a_file_that_changed_on_the_server_is_refused(server, tmp_path):
    """D2: a shard that is another one than at first."""
    (server.folder / "a.tar").write_bytes(b"old")
    path = cache(tmp_path).path(f"{server.address}/a.tar")
    path.unlink()
    (server.folder / "a.tar").write_bytes(b"newer")
    with pytest.raises(DataError, match="changed since it was fetched first"):
        cache(tmp_path).path(f"{server.address}/a.tar")
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "message", "tries"),
    [("missing.tar", "404", 1), ("broken.tar", "503", 3), ("cut.tar", "broke off after 10 of 1000 bytes", 3)],
)
def test_failures_leave_nothing_behind(server, tmp_path, name, message, tries):
    """D2, S5: a shard that can't be had, or is larger than allowed, leaves nothing."""
    with pytest.raises(DataError, match=message):
        cache(tmp_path).path(f"{server.address}/{name}")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(server.asked) == tries


def test_unsafe_addresses_are_refused(server, tmp_path):
    """S8: only https, also after a redirect."""
    with pytest.raises(DataError, match=r"http://example.org/file.tar: expected https"):
        cache(tmp_path).path(f"{server.address}/away.tar")
    with pytest.raises(DataError, match="expected https"):
        cache(tmp_path).path("http://example.org/a.tar")
    with pytest.raises(DataError, match="expected an address with http"):
        cache(tmp_path).path("ftp://example.org/a.tar")
    with pytest.raises(DataError, match="can't be found by a glob"):
        open_shards("https://example.org", "a-*.tar", cache(tmp_path), None)


def test_no_connection_says_so(server, tmp_path):
    """S8: without a network the message says so."""
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="is this machine offline"):
        cache(tmp_path).path(f"{server.address}/a.tar")


def test_hub_addresses_name_a_commit():
    """S7: data of the hub are named with a commit."""
    commit = "0123456789abcdef" * 2 + "01234567"
    assert split_hub_address(f"hf://datasets/me/birds@{commit}/a/b.tar") == ("me/birds", commit, "a/b.tar")
    with pytest.raises(DataError, match=r"40 hex digits.*'main'"):
        split_hub_address("hf://datasets/me/birds@main/a.tar")
    with pytest.raises(DataError, match="expected hf://datasets"):
        split_hub_address("hf://me/birds/a.tar")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("t-{08..11}.tar", ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]),
        ("t-{8..10}", ["t-8", "t-9", "t-10"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("x{000..002}", ["x000", "x001", "x002"]),
    ],
)
def test_braces(pattern, expected):
    assert expand(pattern) == expected


@pytest.mark.parametrize("pattern", ["{5..2}", "{a..c}", "{a", "a}", "{}", "{0..9999999}", "{0..99999}{0..99999}"])
def test_wrong_braces_are_refused(pattern):
    with pytest.raises(DataError):
        expand(pattern)
