"""The small datasets on disk that the tests of ``data`` use as well."""

from tests.data.conftest import folder

__all__ = ["folder"]
