"""Files from the network: a cache, and downloads that go on where they were cut off.

``torch.hub.download_url_to_file`` starts over after every cut, waits for a dead server without end, and
takes what it got before a cut for the whole file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, quote, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # connections that may be cut off in one download
CHUNK = 1 << 18  # bytes
MAX_NAME = 100  # characters of a folder or file in the cache; file systems take 255, with what is appended

# What a lost connection raises; the rest of OSError is about the disk.
CUT_OFF = (ConnectionError, TimeoutError, SSLError, HTTPException)


def is_url(source: str | Path) -> bool:
    """Tell whether a source is on the network."""
    return str(source).lower().startswith(("http://", "https://"))


def locate(source: str | Path) -> Path:
    """Return the local file of a source: the cached copy of an http(s) URL, else the path without ``~``.

    Raises:
        ValueError: if the download fails.
    """
    return fetch(str(source)) if is_url(source) else Path(os.path.expanduser(source))


def without_secrets(source: str | Path) -> str:
    """Return a source for messages: of a URL the query, which may hold a key, and the like are left out."""
    if not is_url(source):
        return str(source)
    printable = re.sub(r"[\x00-\x1f]", "", str(source))
    scheme, _, rest = re.split(r"[?#]", printable)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def split(url: str) -> SplitResult:
    """Split a URL, with what may not stand in one, such as spaces, percent-quoted.

    Raises:
        ValueError: if it is malformed, holds a password or names no file.
    """
    shown = without_secrets(url)
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ValueError(f"{shown} is no URL ({error}); correct it") from error
    if parts.username or parts.password:
        raise ValueError(f"expected a URL without user and password for {shown}; download the file by hand")
    if not re.fullmatch(r"[a-z0-9.-]*[a-z0-9-][a-z0-9.-]*", host):
        raise ValueError(f"expected a URL with the name of a server, such as https://host/file, got {shown}")
    if not parts.path.strip("/") or parts.path.endswith(("/", "/.", "/..")):
        raise ValueError(f"expected a URL that ends in the name of a file, got {shown}")
    path, query = (quote(text, safe="/%:@!$&'()*+,;=?~") for text in (parts.path, parts.query))
    return SplitResult(parts.scheme, host + port, path, query, "")


def cache_root() -> Path:
    """Return the folder of downloads: ``$ATSS_CACHE``, by default ``~/.cache/atss``."""
    folder = os.environ.get("ATSS_CACHE")
    return Path(os.path.expanduser(folder)) if folder else Path.home() / ".cache" / "atss"


def cache_path(url: str) -> Path:
    """Return where the copy of a URL is: under the cache by host and path.

    With the folders of the URL two files of one name do not collide; a query counts with its hash.

    Raises:
        ValueError: as ``split``.
    """
    parts = split(url)
    folders = [short(name) for name in parts.path.split("/") if name not in ("", ".", "..")]
    path = cache_root().joinpath(parts.netloc.replace(":", "_"), *folders)
    return path.with_name(f"{path.stem}-{digits(parts.query)}{path.suffix}") if parts.query else path


def short(name: str) -> str:
    """Return the name of a file, cut and with its hash if it is too long."""
    if len(name) <= MAX_NAME:
        return name
    suffix = PurePosixPath(name).suffix[-16:]
    return f"{name[: MAX_NAME // 2]}-{digits(name)}{suffix}"


def digits(text: str) -> str:
    """Return the first digits of the hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def fetch(url: str, sha256: str = "") -> Path:
    """Return the cached copy of a URL, downloading it with a progress bar if it is not there yet.

    A file that was put there by hand is taken as it is, unless the URL gives a sum. Of several processes on a
    machine one downloads and the others wait for it, however long that takes.

    Args:
        url: http or https; it may end in ``#sha256=...``, with at least the first 8 digits.
        sha256: the sum in hexadecimal digits, or how it begins, to check a download with; empty if unknown.

    Raises:
        ValueError: if the URL is malformed, the download fails or the sum in the URL is another; the message
            says where to put the file by hand.
    """
    url, _, fragment = url.partition("#")
    given = sum_of(fragment)
    parts, path = split(url), cache_path(url)
    shown = without_secrets(url)
    try:
        if not path.is_file():
            logger.info("Downloading %s to %s", shown, path)
            download(parts.geturl(), path, given or sha256.lower())
        elif given:
            check_sum(path, given)
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(
            f"cannot get {shown}: {explain(error)}; {remedy(error, path)}, or put the file at {path} by hand"
        ) from error
    return path


def sum_of(fragment: str) -> str:
    """Return the sum that the end of a URL gives, in lower-case digits; empty if it has no end.

    Raises:
        ValueError: if it is something else.
    """
    if fragment and not re.fullmatch(r"sha256=[0-9a-fA-F]{8,64}", fragment):
        raise ValueError(
            f"expected a URL to end in #sha256= and 8 to 64 hexadecimal digits, got #{fragment}; correct it"
        )
    return fragment.removeprefix("sha256=").lower()


def explain(error: Exception) -> str:
    """Return why a download failed, without the wrapping of urllib."""
    if isinstance(error, HTTPError):
        return f"status {error.code}, {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__


def remedy(error: Exception, path: Path) -> str:
    """Return what helps against the failure of a download to ``path``."""
    if isinstance(error, HTTPError):
        return "try again later" if error.code in (408, 429) or error.code >= 500 else "correct the URL"
    if isinstance(error, (URLError, *CUT_OFF)):
        return "run again with a connection, to go on from what has arrived"
    if isinstance(error, OSError):
        return "make room, or set ATSS_CACHE to a folder that you may write to"
    return f"remove {path}" if path.is_file() else "use the direct link of the right file"


def how_to_get_again(path: Path) -> str:
    """Return how to replace a file that cannot be read."""
    if cache_root().resolve() in path.resolve().parents:
        return f"remove {path} to download it again"
    return "download or copy it again"


def download(url: str, path: Path, sha256: str = "") -> None:
    """Download to ``path``, going on from ``<path>.part`` where the server allows it.

    ``path`` appears when all has arrived. A cut connection is taken up again a few times. Where another
    process is at it already, this one waits for it.

    Args:
        url: http or https.
        path: the file to write.
        sha256: the sum in hexadecimal digits, or how it begins; empty is not checked.

    Raises:
        OSError: if the file does not arrive.
        HTTPException: if the server does not speak HTTP.
        ValueError: if it is a web page, or the sum is another; what arrived is removed then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with own_part(path) as part:
        if path.is_file():  # another process has downloaded it meanwhile
            return
        receive_all(url, part)
        version_file(part).unlink(missing_ok=True)
        try:
            check_sum(part, sha256)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, path)


@contextmanager
def own_part(path: Path) -> Iterator[Path]:
    """Return the file to download into, which no other process writes to until this ends."""
    lock = path.with_name(f"{path.name}.lock")
    with open(lock, "w") as file:
        if not is_locked(file.fileno(), path):
            yield path.with_name(f"{path.name}.{os.getpid()}.part")
            return
        yield path.with_name(f"{path.name}.part")
        # Only now that ``path`` is there: who still waits for this lock and who makes a new one find nothing
        # left to do. After a failure they must go on to exclude each other, so the lock stays.
        with suppress(OSError):
            lock.unlink()


def is_locked(file: int, path: Path) -> bool:
    """Wait for the lock of ``path`` and return true, or false where the system has no locks."""
    if fcntl is None:
        return False
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Waiting for another process, which downloads %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # some network file systems
        return False
    return True


def receive_all(url: str, part: Path) -> None:
    """Download into ``part``, taking up cut connections; raises as ``receive``."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            receive(url, part)
            return
        except CUT_OFF as error:
            if attempt == ATTEMPTS:
                raise
            logger.info("The connection was cut off (%s); going on", error)


def receive(url: str, part: Path) -> None:
    """Append to ``part`` what is missing, or write it anew where it is of another version of the file.

    Raises:
        OSError: if the connection fails or ends early; what arrived stays.
        HTTPException: if the server does not speak HTTP.
        ValueError: if it sends a web page.
    """
    response, start = open_from(url, part)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError("the server sent a web page")
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
    """Compare the sum of a file with hexadecimal digits, all or the first.

    Raises:
        ValueError: if it is another.
    """
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    if not found.hexdigest().startswith(sha256):
        raise ValueError(f"its sha256 should begin with {sha256} and is {found.hexdigest()}")
