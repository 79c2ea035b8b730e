"""The start of a server: when it fails or is interrupted, the next one can start at once."""

import socket

import pytest

from tests.support.published_model import published
from videoar.core.clock import Clock
from videoar.core.errors import ConfigError, LeaseHeldError, StorageError
from videoar.serving import serve
from videoar.serving.replica import ReplicaOptions
from videoar.serving.serve import server_lease
from videoar.storage.layout import SERVING_LEASE
from videoar.storage.lease import Lease
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    store.refs.advance("champion", published(store).id, expect=None, evidence={})
    return store


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def options(port, host="127.0.0.1"):
    return serve.ServeOptions(models=(ReplicaOptions(model="champion"),), host=host, port=port)


def never(seconds):
    raise AssertionError("waited for another server")


@pytest.mark.parametrize(("target", "part"), [("inline", "ModelReplica"), ("local", "online")])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ConfigError("a", "b"), StorageError("", "")]
)
def test_start_that_fails_raises_its_error_and_releases_the_lease(
    store, free_port, monkeypatch, target, part, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr(serve, part, fail)
    with pytest.raises(type(error)) as raised:
        serve.serve(store, options(free_port), target)
    assert raised.value is error
    assert Lease(store, SERVING_LEASE, "test", clock=Clock(sleep=never)).acquire() == 1


def test_start_beside_another_server_does_not_release_the_lease_of_that_one(store, free_port):
    first = server_lease(store)
    first.acquire()
    first.keep(lambda error: None)
    with pytest.raises(LeaseHeldError):
        serve.serve(store, options(free_port), "inline")
    with pytest.raises(LeaseHeldError):
        server_lease(store).acquire()
    first.release()


@pytest.mark.parametrize("target", ["inline", "local"])
def test_address_that_cannot_be_listened_at_is_an_error_before_anything_starts(
    store, listener, target
):
    port = listener.getsockname()[1]
    with pytest.raises(ConfigError, match=f"--port {port}: cannot be listened at: Address already"):
        serve.serve(store, options(port), target)
    with pytest.raises(ConfigError, match="--host nosuch"):
        serve.serve(store, options(port, "nosuch.invalid"), target)
    assert list(store.objects.list("serving/")) == []
