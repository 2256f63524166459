"""Downloads from a server in this process; nothing leaves the machine."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from atss_core.utils import dist
from atss_core.utils.checkpoint import read_checkpoint
from atss_core.utils.download import ATTEMPTS, cache_path, fetch, locate

CONTENT = bytes(range(256)) * 4096


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every path but /none; the switches make it misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.tag = '"one"'
        self.knows_ranges = True
        self.cut_after = []  # bytes that the next answers send before the connection breaks
        self.ranges = []  # what was asked for

    def url(self, path="R-50.pkl"):
        return f"http://127.0.0.1:{self.server_port}/models/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if "none" in self.path:
            self.send_error(404)
            return
        start = 0
        if wanted and server.knows_ranges and self.headers.get("If-Range") in (None, server.tag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if server.tag:
            self.send_header("ETag", server.tag)
        if start:
            total = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(body[: server.cut_after.pop(0)] if server.cut_after else body)

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


def test_file_is_downloaded_once_and_taken_from_the_cache(server, tmp_path):
    path = fetch(server.url())
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "cache" / f"127.0.0.1_{server.server_port}" / "models" / "R-50.pkl"
    assert leftovers(path) == ["R-50.pkl"]
    assert fetch(server.url()) == locate(server.url()) == path
    assert server.ranges == [None]


def test_cut_connections_are_taken_up_again(server):
    server.cut_after = [100000, 200000]
    assert fetch(server.url()).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=300000-"]


def test_next_run_goes_on(server):
    interrupt(server)
    path = fetch(server.url(), hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert server.ranges == ["bytes=300000-"]
    assert leftovers(path) == ["R-50.pkl"]


@pytest.mark.parametrize("change", ["other file", "no ranges", "no tag", "shorter file of the same tag"])
def test_download_starts_over_where_it_cannot_go_on(server, change):
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
    first_asks = [None] if change == "no tag" else ["bytes=300000-"]
    assert server.ranges == first_asks + ([None] if change.startswith("shorter") else [])


@pytest.mark.parametrize("digits", [8, 64])
def test_sum_is_checked(server, digits):
    right = hashlib.sha256(CONTENT).hexdigest()[:digits]
    wrong = "0" * digits
    with pytest.raises(ValueError, match=rf"should begin with {wrong} and is {right}.*was removed"):
        fetch(server.url(), wrong)
    assert not list(cache_path(server.url()).parent.iterdir())
    with pytest.raises(ValueError, match="was removed"):
        fetch(f"{server.url()}#sha256={wrong}")
    assert fetch(f"{server.url()}#sha256={right.upper()}").read_bytes() == CONTENT


def test_files_of_one_name_do_not_collide(server):
    urls = [server.url(name) for name in ("a/x.pth", "b/x.pth", "b/x.pth?v=1", "b/x.pth?v=2")]
    assert len({cache_path(url) for url in urls}) == 4
    assert all(cache_path(url).suffix == ".pth" for url in urls)
    root = cache_path(server.url("")).parents[1]
    assert root in cache_path(server.url("../../../x.pth")).parents


def test_offline_is_explained_and_a_file_put_there_by_hand_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/R-50.pkl"
    with pytest.raises(ValueError, match=r"cannot download .*refused") as error:
        fetch(url)
    assert "\n" not in str(error.value)
    assert f"put the file at {cache_path(url)} by hand" in str(error.value)
    cache_path(url).write_bytes(b"by hand")
    assert fetch(url, "00000000").read_bytes() == b"by hand"


def test_missing_file_is_explained_without_trying_again(server):
    with pytest.raises(ValueError, match=r"cannot download .*none.pth \(status 404, Not Found\)"):
        fetch(server.url("none.pth"))
    assert server.ranges == [None]


def test_only_the_first_process_of_a_machine_downloads_and_a_failure_frees_the_others(server, monkeypatch):
    waited = []
    monkeypatch.setattr(dist, "barrier", lambda: waited.append(True))
    with pytest.raises(ValueError, match="status 404"):
        fetch(server.url("none.pth"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="the first process of this machine says why"):
        fetch(server.url("none.pth"))
    assert len(server.ranges) == 1
    assert len(waited) == 2


def test_checkpoint_of_a_url_is_read(server, tmp_path):
    weights = {"weight": torch.rand(2, 3)}
    torch.save(weights, tmp_path / "model.pth")
    server.content = (tmp_path / "model.pth").read_bytes()
    read = read_checkpoint(locate(server.url("model.pth")))["model"]
    assert torch.equal(read["weight"], weights["weight"])
    assert locate("some/model.pth").parts == ("some", "model.pth")
