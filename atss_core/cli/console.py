"""Robust standard streams: closed and full ones, any encoding, and escaped control characters."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from atss_core.utils.text import printable


class _Stream:
    """A standard stream that fails at most once and then discards its text.

    Args:
        stream: to write to.
        is_output: whether it is standard output, which raises its error and escapes control characters.
            Standard error does neither: progress bars move the cursor, and it must never stop a command.
    """

    def __init__(self, stream: TextIO, is_output: bool) -> None:
        self._stream = stream
        self._is_output = is_output
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; returns its length."""
        with self._failing_once():
            self._stream.write(printable(text, keep="\n\t") if self._is_output else text)
        return len(text)

    def flush(self) -> None:
        """Write the buffer."""
        with self._failing_once():
            self._stream.flush()

    @contextmanager
    def _failing_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            self.error = error
            if self._is_output:
                raise


@contextmanager
def console() -> Iterator[None]:
    """Make the standard streams safe to write to while a command runs.

    Characters that their encoding lacks are escaped. The text of a closed stream, and of a broken standard
    error, is discarded. If standard output breaks, the process exits like other command-line tools: with the
    status of SIGPIPE if its reader, such as ``head``, has ended, else with an error.
    """
    if isinstance(sys.stdout, _Stream):  # a command inside of ``atss``
        yield
        return
    before = sys.stdout, sys.stderr
    streams = [stream or open(os.devnull, "w") for stream in before]  # noqa: SIM115 (open until the end)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    output = _Stream(streams[0], is_output=True)
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, _Stream(streams[1], is_output=False))
    try:
        try:
            yield
        except SystemExit as stop:
            output.flush()
            if output.error is not None and not stop.code:  # argparse suppresses the error
                raise output.error from None
            raise
        output.flush()
    except OSError as error:
        if error is not output.error:
            raise
        if isinstance(error, BrokenPipeError):
            sys.exit(128 + 13)  # SIGPIPE, which Windows does not have, as a shell reports it
        print(f"error: standard output cannot be written to ({error.strerror})", file=sys.stderr)
        sys.exit(2)
    finally:
        sys.stdout, sys.stderr = before
