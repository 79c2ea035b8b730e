"""The address of Ray Serve, on a cluster where it runs already."""

import socket
from contextlib import closing

import httpx2
import pytest

from videoar.core.errors import ConfigError
from videoar.engine.ray_online import online
from videoar.engine.ray_session import connect, disconnect

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def ingress_type():
    """Return a class that is pickled by value: workers do not have this module."""

    class Ingress:
        def __init__(self, replicas):
            from fastapi import FastAPI

            self.app = FastAPI()
            self.app.add_api_route("/", lambda: "answer")

        async def start(self):
            pass

        async def drain(self, limit_s):
            pass

    return Ingress


@pytest.fixture
def bind():
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        address = free.getsockname()
    yield address
    disconnect()


def start_as_the_stage_generate_does():
    from ray import serve

    connect("local")
    serve.start(proxy_location="Disabled")
    return serve


def test_server_beside_a_running_batch_of_the_cluster_is_rejected(bind):
    serve = start_as_the_stage_generate_does()
    batch = serve.deployment(ingress_type()).bind(None)
    serve.run(batch, name="batch", route_prefix=None)
    expected = pytest.raises(ConfigError, match="listens nowhere, and has applications")
    with expected, online("local", {}, ingress_type(), bind, 1):
        pass


def test_server_after_a_batch_of_the_cluster_listens_where_it_is_told(bind):
    start_as_the_stage_generate_does()
    with online("local", {}, ingress_type(), bind, 1):
        assert httpx2.get(f"http://{bind[0]}:{bind[1]}/").json() == "answer"
