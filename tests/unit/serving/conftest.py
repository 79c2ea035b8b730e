"""One small model and one live server for all tests of the HTTP API."""

import httpx2
import pytest
import torch

from tests.support.published_model import published
from tests.support.video_files import ffmpeg
from tests.support.video_service import LiveServer, OneByOne
from videoar.admin.loaded_model import load_stored
from videoar.serving.limits import Limits
from videoar.serving.server import ServerSettings
from videoar.storage.store import open_store

UNLIMITED = Limits(requests_per_s=1e5, burst=10_000, max_queue=10_000, max_body_bytes=1 << 20)


@pytest.fixture(scope="session")
def served_store(tmp_path_factory):
    torch.set_num_threads(1)
    return open_store(tmp_path_factory.mktemp("served").as_uri())


@pytest.fixture(scope="session")
def loaded(served_store):
    return load_stored(served_store, published(served_store).id)


@pytest.fixture(scope="session")
def live(served_store, loaded):
    """A server that limits only the size of bodies, to 1 MiB."""
    settings = ServerSettings(limits=UNLIMITED)
    with LiveServer(OneByOne(served_store, loaded), settings) as server:
        yield server


@pytest.fixture
def http(live):
    with httpx2.Client(base_url=live.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def png():
    """An image of 64 x 48 pixels."""
    return ffmpeg(
        "-f", "lavfi", "-i", "testsrc=size=64x48", "-frames:v", 1, "-f", "image2pipe",
        "-c:v", "png", "-",
    )  # fmt: skip
