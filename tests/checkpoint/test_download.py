"""Downloads from a server in this process; nothing leaves the machine."""

import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock

from atss_core.checkpoint import download as download_module
from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.checkpoint.download import ATTEMPTS, cache_path, fetch, is_url, locate
from atss_core.checkpoint.formats import read_caffe2
from tests.golden import ROOT

CONTENT = bytes(range(256)) * 4096


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every path but /none; its attributes make it misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.tag = '"one"'
        self.knows_ranges = True
        self.cut_after = []  # bytes that the next answers send before the connection breaks
        self.ranges = []  # Range headers of the requests
        self.paths = []  # of the requests
        self.content_type = "application/octet-stream"
        self.delay = 0  # seconds between two halves of an answer
        self.meeting = threading.Barrier(1)  # how many answers wait for each other between their halves

    def url(self, path="R-50.pkl"):
        return f"http://127.0.0.1:{self.server_port}/models/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        requested = self.headers.get("Range")
        server.ranges.append(requested)
        server.paths.append(self.path)
        if "none" in self.path:
            self.send_error(404)
            return
        start = 0
        if requested and server.knows_ranges and self.headers.get("If-Range") in (None, server.tag):
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body)))
        if server.tag:
            self.send_header("ETag", server.tag)
        if start:
            total = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        body = body[: server.cut_after.pop(0)] if server.cut_after else body
        self.wfile.write(body[: len(body) // 2])
        time.sleep(server.delay)
        server.meeting.wait(timeout=600)
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def leftovers(path):
    return sorted(p.name for p in path.parent.iterdir())


def interrupt(server):
    """Leave the first 300000 bytes of a download behind."""
    server.cut_after = [300000, *[0] * ATTEMPTS]
    with pytest.raises(
        ValueError, match=r"000 of 1048576 bytes arrived.* run again" if server.tag else "0 of"
    ):
        fetch(server.url())
    server.cut_after.clear()
    server.ranges.clear()


def test_file_is_downloaded_once_and_then_cached(server, tmp_path):
    path = fetch(server.url())
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "cache" / f"127.0.0.1_{server.server_port}" / "models" / "R-50.pkl"
    assert leftovers(path) == ["R-50.pkl"]
    assert fetch(server.url()) == locate(server.url()) == path
    assert server.ranges == [None]


def test_cut_connections_are_resumed(server):
    server.cut_after = [100000, 200000]
    assert fetch(server.url()).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=300000-"]


def test_next_run_resumes_the_download(server):
    interrupt(server)
    path = fetch(server.url(), hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert server.ranges == ["bytes=300000-"]
    assert leftovers(path) == ["R-50.pkl"]


@pytest.mark.parametrize("change", ["other file", "no ranges", "no tag", "shorter file of the same tag"])
def test_download_starts_over_if_it_cannot_resume(server, change):
    if change == "no tag":
        server.tag = ""
    interrupt(server)
    if change == "other file":
        server.content, server.tag = CONTENT[::-1], '"two"'
    if change == "no ranges":
        server.knows_ranges = False
    if change == "shorter file of the same tag":
        server.content = CONTENT[:1000]
    assert fetch(server.url()).read_bytes() == server.content
    first_ranges = [None] if change == "no tag" else ["bytes=300000-"]
    assert server.ranges == first_ranges + ([None] if change.startswith("shorter") else [])


@pytest.mark.parametrize("digits", [8, 64])
def test_sum_is_checked(server, digits):
    right = hashlib.sha256(CONTENT).hexdigest()[:digits]
    wrong = "0" * digits
    with pytest.raises(
        ValueError, match=rf"sha256 that begins with {wrong}, got {right}.*; use the direct link"
    ):
        fetch(server.url(), wrong)
    path = cache_path(server.url())
    assert leftovers(path) == ["R-50.pkl.lock"]
    with pytest.raises(ValueError, match=rf"begins with {wrong}"):
        fetch(f"{server.url()}#sha256={wrong}")
    assert fetch(f"{server.url()}#sha256={right.upper()}").read_bytes() == CONTENT
    assert leftovers(path) == ["R-50.pkl"]


def test_sum_in_the_url_is_also_checked_for_a_cached_file(server):
    path = fetch(server.url())
    path.write_bytes(b"something else")
    assert fetch(server.url(), "00000000") == path
    right = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(
        ValueError, match=rf"expected a sha256 that begins with {right}.*; remove {path}, or put"
    ):
        fetch(f"{server.url()}#sha256={right}")
    path.unlink()
    assert fetch(f"{server.url()}#sha256={right}").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "end", ["sha256=", "sha256=1234567", "sha256=" + "0" * 65, "sha256=zzzzzzzz", "md5=12345678"]
)
def test_malformed_sum_is_refused_before_the_download(server, end):
    with pytest.raises(ValueError, match=r"expected a URL to end in #sha256= and 8 to 64 hexadecimal digits"):
        fetch(f"{server.url()}#{end}")
    assert not server.ranges


def test_files_of_one_name_do_not_collide(server):
    urls = [server.url(name) for name in ("a/x.pth", "b/x.pth", "b/x.pth?v=1", "b/x.pth?v=2")]
    assert len({cache_path(url) for url in urls}) == 4
    assert all(cache_path(url).suffix == ".pth" for url in urls)
    root = cache_path(server.url("x.pth")).parents[1]
    assert root in cache_path(server.url("../../../x.pth")).parents
    assert cache_path("HTTPS://Example.ORG/a.pth") == cache_path("https://example.org/a.pth")


@pytest.mark.parametrize(
    "url",
    [
        "http://../x.pth",
        "http://.",
        "http:///x.pth",
        "http://x@../../secret.pth",
        "http://..\\..\\secret.pth",
        "http://h:port/x.pth",
        "http://[::1/x.pth",
        "https://h",
        "https://h/",
        "https://h/folder/",
        "https://h/folder/..",
        "https://h?file=x.pth",
        "https://user:secret@h/x.pth?key=secret",
    ],
)
def test_urls_that_name_no_file_of_a_server_are_refused(url, tmp_path, monkeypatch):
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"expected a URL") as error:
        fetch(url)
    assert ":secret" not in str(error.value)
    assert "key=" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "requested"),
    [
        ("a b.pth", "a%20b.pth"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}.pth", "%C3%A9.pth"),
        ("a%20b.pth", "a%20b.pth"),
        ("a\\..\\b.pth", "a%5C..%5Cb.pth"),
        ("x" * 300 + ".pth", "x" * 300 + ".pth"),
    ],
)
def test_special_names_are_quoted_and_long_ones_cut(server, name, requested):
    path = fetch(server.url(name))
    assert path.read_bytes() == CONTENT
    assert path.suffix == ".pth"
    assert server.paths == [f"/models/{requested}"]
    assert len(path.name) < 120
    assert path.parent == cache_path(server.url("x.pth")).parent


def test_keys_in_a_query_stay_out_of_messages(server, caplog):
    caplog.set_level(logging.INFO)
    server.cut_after = [1000]
    fetch(server.url("x.pth?key=secret"))
    with pytest.raises(ValueError, match="status 404") as error:
        fetch(server.url("none.pth?key=secret"))
    assert server.url("x.pth") in caplog.text
    assert "secret" not in caplog.text + str(error.value)


def test_web_page_is_refused(server):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="the server sent a web page; use the direct link"):
        fetch(server.url())
    assert leftovers(cache_path(server.url())) == ["R-50.pkl.lock"]


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "R-50.pkl"])
def test_unreadable_download_names_the_file_to_remove(server, name):
    server.content = b"\x80\x02 no weights"
    path = fetch(server.url(name))
    with pytest.raises(ValueError, match=f"remove {path} to download it again"):
        read_caffe2(path) if name.endswith(".pkl") else read_checkpoint(path)


FETCH = "import sys; from atss_core.checkpoint.download import fetch; fetch(sys.argv[1])"


def start_fetching(server, rank, name="R-50.pkl"):
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, server.url(name)],
        env={**os.environ, "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("locks", [True, False])
def test_two_downloads_of_one_file_do_not_mix(server, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=OSError("no locks available")))
        monkeypatch.setattr(os, "getpid", lambda: threading.get_ident())
        server.meeting = threading.Barrier(3)
    server.delay = 0.1
    path = cache_path(server.url())
    workers = [threading.Thread(target=download_module.download, args=(server.url(), path)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None] * (1 if locks else 3)


def test_second_process_waits_for_the_download_of_the_first(server):
    server.delay = 0.5
    processes = [start_fetching(server, rank) for rank in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    assert server.ranges == [None]
    assert leftovers(cache_path(server.url())) == ["R-50.pkl"]


def test_failure_releases_waiting_processes_and_any_rank_may_download(server, monkeypatch):
    processes = [start_fetching(server, rank, "none.pth") for rank in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert "status 404" in errors
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert fetch(server.url()).read_bytes() == CONTENT


def test_offline_is_explained_and_a_file_put_there_by_hand_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/R-50.pkl"
    with pytest.raises(ValueError, match=r"cannot get .*refused; run again with a connection") as error:
        fetch(url)
    assert "\n" not in str(error.value)
    assert f"put the file at {cache_path(url)} by hand" in str(error.value)
    cache_path(url).parent.mkdir(exist_ok=True)
    cache_path(url).write_bytes(b"by hand")
    assert fetch(url, "00000000").read_bytes() == b"by hand"


def test_missing_file_is_explained_without_trying_again(server):
    with pytest.raises(
        ValueError, match=r"cannot get .*none.pth: status 404, Not Found; correct the URL, or"
    ):
        fetch(server.url("none.pth"))
    assert server.ranges == [None]


def test_disk_errors_are_told_apart_from_cut_connections(server, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"make room, or set ATSS_CACHE to a folder that you may write to"):
        fetch(server.url())
    assert not server.ranges


def test_checkpoint_of_a_url_is_read(server, tmp_path):
    weights = {"weight": torch.rand(2, 3)}
    torch.save(weights, tmp_path / "model.pth")
    server.content = (tmp_path / "model.pth").read_bytes()
    read = read_checkpoint(locate(server.url("model.pth")))["model"]
    assert torch.equal(read["weight"], weights["weight"])
    assert locate("some/model.pth").parts == ("some", "model.pth")


def test_home_folder_and_schemes_of_any_case(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/model.pth") == tmp_path / "model.pth"
    assert is_url("HTTPS://example.org/x.pth")
    assert not is_url("httpsfolder/x.pth")
