"""One small model and one live server for all tests of the HTTP API."""

import shutil
from urllib.parse import unquote, urlsplit

import httpx2
import pytest
import torch

from tests.support.published_model import published
from tests.support.video_files import ffmpeg
from tests.support.video_service import UNLIMITED, InlineServer
from videoar.admin.loaded_model import load_stored
from videoar.serving.server import ServerSettings
from videoar.storage.store import open_store


@pytest.fixture(scope="session")
def served_store(tmp_path_factory):
    torch.set_num_threads(1)
    store = open_store((tmp_path_factory.mktemp("served") / "store").as_uri())
    store.refs.advance("champion", published(store).id, expect=None, evidence={})
    return store


@pytest.fixture(scope="session")
def loaded(served_store):
    return load_stored(served_store, "champion")


@pytest.fixture(scope="session")
def serve_copy(served_store, tmp_path_factory):
    """Return a function that makes a real server on a copy of the store."""

    def make(settings, **options):
        folder = tmp_path_factory.mktemp("copy") / "store"
        shutil.copytree(unquote(urlsplit(served_store.url).path), folder)
        return InlineServer(open_store(folder.as_uri()), settings, **options)

    return make


@pytest.fixture(scope="session")
def live(serve_copy):
    """A server that limits only the size of bodies, to 1 MiB."""
    with serve_copy(ServerSettings(limits=UNLIMITED)) as server:
        yield server


@pytest.fixture
def http(live):
    # verify=False: reading all certificates of the system takes longer than most requests
    with httpx2.Client(base_url=live.url, timeout=30, verify=False) as client:
        yield client


@pytest.fixture(scope="session")
def png():
    """An image of 64 x 48 pixels."""
    return ffmpeg(
        "-f", "lavfi", "-i", "testsrc=size=64x48", "-frames:v", 1, "-f", "image2pipe",
        "-c:v", "png", "-",
    )  # fmt: skip
