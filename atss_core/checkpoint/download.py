"""Download files into a cache, resume after cut connections, and verify sha256 sums.

This is own code because ``torch.hub.download_url_to_file`` and pooch start over after each cut, and the
former waits for a dead server without end and keeps a truncated file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, quote, urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from tqdm import tqdm

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # connections per download
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 18  # bytes
_MAX_NAME = 100  # characters of a file name in the cache; file systems take 255, suffixes included
_CUT_OFF = (ConnectionError, TimeoutError, SSLError, HTTPException)  # other OSErrors are about the disk


def is_url(source: str | Path) -> bool:
    """Tell whether a source is an http(s) URL."""
    return str(source).lower().startswith(("http://", "https://"))


def locate(source: str | Path) -> Path:
    """Return the local file of a source: the cached copy of a URL, else the path with ``~`` expanded.

    Raises:
        ValueError: if the download fails.
    """
    return fetch(str(source)) if is_url(source) else Path(os.path.expanduser(source))


def without_secrets(source: str | Path) -> str:
    """Return a source for messages: a URL loses its query, fragment and user, which may hold a key."""
    if not is_url(source):
        return str(source)
    printable = re.sub(r"[\x00-\x1f]", "", str(source))
    scheme, _, rest = re.split(r"[?#]", printable)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def cache_root() -> Path:
    """Return the folder of downloads: ``$ATSS_CACHE``, by default ``~/.cache/atss``."""
    return Path(os.path.expanduser(os.environ.get("ATSS_CACHE") or "~/.cache/atss"))


def cache_path(url: str) -> Path:
    """Return the cache file of a URL: host and path below ``cache_root()``, plus the hash of a query.

    Raises:
        ValueError: if the URL is malformed, holds a password or names no file.
    """
    url_parts = _split(url)
    names = [name for name in url_parts.path.split("/") if name not in ("", ".", "..")]
    path = cache_root().joinpath(url_parts.netloc.replace(":", "_"), *map(_shorten, names))
    return path.with_name(f"{path.stem}-{_hash(url_parts.query)}{path.suffix}") if url_parts.query else path


def fetch(url: str, sha256: str = "") -> Path:
    """Return the cached copy of a URL, downloading it with a progress bar if it is missing.

    A file that was put there by hand is used as it is, unless the URL gives a sum. Of several processes on a
    machine, one downloads and the others wait for it.

    Args:
        url: http or https; it may end in ``#sha256=...`` with at least the first 8 digits.
        sha256: hexadecimal digits that the sum of a download begins with; empty is not checked.

    Raises:
        ValueError: if the URL is malformed, the download fails or the sum differs. The message names the URL,
            the file in the cache and the remedy.
    """
    url, _, fragment = url.partition("#")
    if fragment and not re.fullmatch(r"sha256=[0-9a-fA-F]{8,64}", fragment):
        raise ValueError(
            f"expected a URL to end in #sha256= and 8 to 64 hexadecimal digits, got #{fragment}. Correct it"
        )
    given = fragment.removeprefix("sha256=").lower()
    quoted, path, shown = _split(url).geturl(), cache_path(url), without_secrets(url)
    try:
        if not path.is_file():
            logger.info("Downloading %s to %s", shown, path)
            download(quoted, path, given or sha256.lower())
        elif given:
            _check_sum(path, given)
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(error, HTTPError):
            reason = f"status {error.code}, {error.reason}"
        raise ValueError(
            f"cannot get {shown}: {str(reason) or type(error).__name__}; {_remedy(error, path)}, or put the "
            f"file at {path} by hand"
        ) from error
    return path


def how_to_get_again(path: Path) -> str:
    """Return how to replace a file that cannot be read."""
    if cache_root().resolve() in path.resolve().parents:
        return f"remove {path} to download it again"
    return "download or copy it again"


def download(url: str, path: Path, sha256: str = "") -> None:
    """Download to ``path``, resuming from ``<path>.part`` where the server supports it.

    ``path`` appears once it is complete. If another process downloads it already, this one waits.

    Args:
        url: http or https.
        path: the file to write.
        sha256: hexadecimal digits that the sum begins with; empty is not checked.

    Raises:
        OSError: if the file does not arrive.
        HTTPException: if the server does not speak HTTP.
        ValueError: if it is a web page, or the sum differs; what arrived is removed then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _own_part(path) as part:
        if path.is_file():  # another process has downloaded it meanwhile
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _receive(url, part)
                break
            except _CUT_OFF as error:
                if attempt == ATTEMPTS:
                    raise
                logger.info("The connection was cut off (%s); resuming", error)
        _version_file(part).unlink(missing_ok=True)
        try:
            _check_sum(part, sha256)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, path)


@contextmanager
def _own_part(path: Path) -> Iterator[Path]:
    """Yield the file to download into, which no other process writes to meanwhile."""
    lock = FileLock(f"{path}.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("Waiting for another process, which downloads %s", path)
            lock.acquire()
    except (OSError, NotImplementedError):  # some network file systems have no locks
        yield path.with_name(f"{path.name}.{os.getpid()}.part")
        return
    try:
        yield path.with_name(f"{path.name}.part")
        # Only after success: whoever still waits finds nothing left to do. After a failure they must go on to
        # exclude each other, so the lock stays.
        with suppress(OSError):
            os.unlink(lock.lock_file)
    finally:
        lock.release()


def _receive(url: str, part: Path) -> None:
    """Append the missing bytes to ``part``, or write it anew if the remote file has changed.

    Raises:
        OSError: if the connection fails or ends early; what arrived stays.
        HTTPException: if the server does not speak HTTP.
        ValueError: if it sends a web page.
    """
    version_file = _version_file(part)
    version = version_file.read_text(encoding="utf-8") if version_file.is_file() and part.is_file() else ""
    start = part.stat().st_size if version else 0
    headers = {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    try:
        response = urlopen(Request(url, headers={"User-Agent": "atss", **headers}), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # range not satisfiable
            raise
        part.unlink(missing_ok=True)
        raise ConnectionError(f"the server has no bytes from {start} on") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError("the server sent a web page")
        if response.status != 206:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            version_file.unlink(missing_ok=True)
            raise ConnectionError("the server sent another range than requested")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with open(part, "ab" if start else "wb") as file:
            if not start:
                # Weak tags (W/...) never match in If-Range, but dates do.
                tag, date = (response.headers.get(name, "") for name in ("ETag", "Last-Modified"))
                version_file.write_text(tag if tag.startswith('"') else date, encoding="utf-8")
            name = part.name.removesuffix(".part")
            with tqdm.wrapattr(response, "read", total, initial=start, desc=name, disable=None) as stream:
                shutil.copyfileobj(stream, file, _CHUNK)
            size = file.tell()
    if total is not None and size != total:
        raise ConnectionError(f"{size} of {total} bytes arrived")


def _version_file(part: Path) -> Path:
    """Return the file that holds the ETag or date of the remote file that ``part`` is the start of."""
    return part.with_name(part.name + ".version")


def _check_sum(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if not digest.hexdigest().startswith(sha256):
        raise ValueError(f"expected a sha256 that begins with {sha256}, got {digest.hexdigest()}")


def _remedy(error: Exception, path: Path) -> str:
    if isinstance(error, HTTPError):
        return "try again later" if error.code in (408, 429) or error.code >= 500 else "correct the URL"
    if isinstance(error, (URLError, *_CUT_OFF)):
        return "run again with a connection, to resume the download"
    if isinstance(error, OSError):
        return "make room, or set ATSS_CACHE to a folder that you may write to"
    return f"remove {path}" if path.is_file() else "use the direct link of the right file"


def _split(url: str) -> SplitResult:
    """Split a URL and percent-quote what may not stand in one, such as spaces.

    Raises:
        ValueError: if it is malformed, holds a password or names no file.
    """
    shown = without_secrets(url)
    try:
        split = urlsplit(url)
        host, port = split.hostname or "", f":{split.port}" if split.port else ""
    except ValueError as error:
        raise ValueError(f"{shown}: expected a URL, got a malformed one ({error}). Correct it") from error
    faults = {
        "without user and password": split.username or split.password,
        "with the name of a server, such as https://host/file": not re.fullmatch(
            r"[a-z0-9.-]*[a-z0-9-][a-z0-9.-]*", host
        ),
        "that ends in the name of a file": not split.path.strip("/")
        or split.path.endswith(("/", "/.", "/..")),
    }
    for expected, is_broken in faults.items():
        if is_broken:
            raise ValueError(f"{shown}: expected a URL {expected}. Correct it, or download the file by hand")
    path, query = (quote(text, safe="/%:@!$&'()*+,;=?~") for text in (split.path, split.query))
    return SplitResult(split.scheme, host + port, path, query, "")


def _shorten(name: str) -> str:
    """Cut a long file name and append its hash."""
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME // 2]}-{_hash(name)}{PurePosixPath(name).suffix[-16:]}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
