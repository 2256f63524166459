import pytest

from atss_core.checkpoint.download import cache_path
from tests.checkpoint.backbones import make_classifier


@pytest.fixture(scope="module")
def resnet18():
    return make_classifier("resnet18")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache to put files in by hand, and no network."""
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path))

    def put(url):
        path = cache_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    return put
