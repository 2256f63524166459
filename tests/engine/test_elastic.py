"""SIGTERM in a block that has nothing left to save."""

import os
import signal
import sys

import pytest

from atss_core.engine.elastic import TerminatedError, Termination

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_no_broad_except_hides_it():
    def block():
        with Termination() as termination, termination.at_once("stopped"):
            try:
                terminate()
            except Exception:
                pytest.fail("taken for an error")

    with pytest.raises(TerminatedError, match=r"^stopped$"):
        block()


def test_an_error_of_what_was_interrupted_does_not_replace_it():
    class HalfWritten:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            raise RuntimeError("unexpected pos 64 vs 0")

    def block():
        with Termination() as termination, termination.at_once("stopped"), HalfWritten():
            terminate()

    with pytest.raises(TerminatedError, match=r"^stopped$"):
        block()


def test_errors_without_the_signal_stay_what_they_are():
    def block():
        with Termination() as termination, termination.at_once("stopped"):
            raise ValueError("the data")

    with pytest.raises(ValueError, match="the data"):
        block()
