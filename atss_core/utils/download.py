"""Files from the network: a cache, and downloads that go on where they were cut off.

``torch.hub.download_url_to_file`` starts over after every cut, waits for a dead server without end, and
takes what it got before a cut for the whole file.
"""

from __future__ import annotations

import hashlib
import logging
import os
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from atss_core.utils import dist

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # connections that may be cut off in one download
CHUNK = 1 << 18  # bytes


def is_url(source: str | Path) -> bool:
    """Tell whether a source is on the network."""
    return str(source).startswith(("http://", "https://"))


def locate(source: str | Path) -> Path:
    """Return the local file of a source: the cached copy of an http(s) URL, else the path itself.

    Raises:
        ValueError: if the download fails.
    """
    return fetch(str(source)) if is_url(source) else Path(source)


def cache_path(url: str) -> Path:
    """Return where the copy of a URL is: ``$ATSS_CACHE``, by default ``~/.cache/atss``, then host and path.

    With the folders of the URL two files of one name do not collide; a query counts with its hash.
    """
    root = Path(os.environ.get("ATSS_CACHE") or Path.home() / ".cache" / "atss")
    parts = urlsplit(url)
    folders = [name for name in parts.path.split("/") if name not in ("", ".", "..")]
    path = root.joinpath(parts.netloc.rpartition("@")[2].replace(":", "_"), *folders)
    if parts.query:
        path = path.with_name(
            f"{path.stem}-{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}{path.suffix}"
        )
    return path


def fetch(url: str, sha256: str = "") -> Path:
    """Return the cached copy of a URL, downloading it with a progress bar if it is not there yet.

    A file that was put there by hand is taken as it is. Of several processes on a machine one downloads.

    Args:
        url: http or https; it may end in ``#sha256=...``.
        sha256: the sum in hexadecimal digits, or how it begins; empty if unknown.

    Raises:
        ValueError: if the download fails; the message says where to put the file by hand.
    """
    url, _, fragment = url.partition("#")
    if fragment.startswith("sha256="):
        sha256 = fragment.removeprefix("sha256=")
    path = cache_path(url)
    reason = "the first process of this machine says why"
    if dist.is_local_main() and not path.is_file():
        logger.info("Downloading %s to %s", url, path)
        try:
            download(url, path, sha256.lower())
        except (OSError, HTTPException, ValueError) as error:
            # Raised below, after the other processes, which wait for the file, have been let go.
            logger.debug("the download failed", exc_info=True)
            reason = explain(error)
    dist.barrier()
    if not path.is_file():
        raise ValueError(
            f"cannot download {url} ({reason}); run again with a connection, to go on from what has arrived, "
            f"or put the file at {path} by hand"
        )
    return path


def explain(error: Exception) -> str:
    """Return why a download failed, without the wrapping of urllib."""
    if isinstance(error, HTTPError):
        return f"status {error.code}, {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__


def download(url: str, path: Path, sha256: str = "") -> None:
    """Download to ``path``, going on from ``<path>.part`` where the server allows it.

    ``path`` appears when all has arrived. A cut connection is taken up again a few times.

    Args:
        url: http or https.
        path: the file to write.
        sha256: the sum in hexadecimal digits, or how it begins; empty is not checked.

    Raises:
        OSError: if the file does not arrive.
        HTTPException: if the server does not speak HTTP.
        ValueError: if the sum is another; what arrived is removed then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            receive(url, part)
            break
        except URLError:  # no connection at all, or an answer such as 404
            raise
        except (OSError, HTTPException) as error:
            if attempt == ATTEMPTS:
                raise
            logger.info("The connection was cut off (%s); going on", error)
    version_file(part).unlink(missing_ok=True)
    check_sum(part, sha256)
    os.replace(part, path)


def receive(url: str, part: Path) -> None:
    """Append to ``part`` what is missing, or write it anew where it is of another version of the file.

    Raises:
        OSError: if the connection fails or ends early; what arrived stays.
        HTTPException: if the server does not speak HTTP.
    """
    response, start = open_from(url, part)
    with response:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if not start:
            part.write_bytes(b"")  # before its new version is noted
            # A server compares weak tags (W/...) with none, but dates it does compare.
            tag = response.headers.get("ETag", "")
            date = response.headers.get("Last-Modified", "")
            version_file(part).write_text(tag if tag.startswith('"') else date, encoding="utf-8")
        size = append(response, part, start, total)
    if total is not None and size != total:
        raise ConnectionError(f"{size} of {total} bytes arrived")


def open_from(url: str, part: Path) -> tuple[HTTPResponse, int]:
    """Ask for the bytes that ``part`` lacks.

    Returns:
        The response and the position of its first byte: 0 if ``part`` is empty or of an unknown version, if
        the file has changed since, or if the server knows no ranges.
    """
    version = version_file(part).read_text(encoding="utf-8") if version_file(part).is_file() else ""
    start = part.stat().st_size if version and part.is_file() else 0
    headers = {"User-Agent": "atss"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # there is nothing from there on
            raise
        part.unlink(missing_ok=True)
        version_file(part).unlink(missing_ok=True)
        raise ConnectionError(f"the server has no bytes from {start} on") from error
    if response.status != 206:
        return response, 0
    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        response.close()
        version_file(part).unlink(missing_ok=True)
        raise ConnectionError("the server sent another range than it was asked for")
    return response, start


def append(response: HTTPResponse, part: Path, start: int, total: int | None) -> int:
    """Write a response into ``part`` from byte ``start`` on and return the size of the file then."""
    with (
        open(part, "r+b") as file,
        tqdm(
            desc=part.name.removesuffix(".part"),
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=None,
        ) as bar,
    ):
        file.seek(start)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        return file.tell()


def version_file(part: Path) -> Path:
    """Return the file that notes which version of the remote file ``part`` is a part of."""
    return part.with_name(part.name + ".version")


def check_sum(path: Path, sha256: str) -> None:
    """Compare the sum of a file, or how it begins, and remove the file if it is another.

    Raises:
        ValueError: if it is another.
    """
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    if not found.hexdigest().startswith(sha256):
        path.unlink()
        raise ValueError(
            f"its sha256 should begin with {sha256} and is {found.hexdigest()}; what arrived was removed"
        )
