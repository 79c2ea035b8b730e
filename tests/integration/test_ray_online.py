"""Ray Serve on a cluster where it runs already, and starts that leave nothing behind."""

import _thread
import socket
import time
from contextlib import closing
from threading import Thread

import httpx2
import pytest

from videoar.core.errors import ConfigError
from videoar.engine import ray_online
from videoar.engine.ray_online import Model, online
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


def replica_type(work):
    """Return the type of a replica that does something when it is made; pickled by value, too."""

    class Replica:
        def __init__(self):
            work()

    return Replica


def fail():
    raise ConfigError("model broken", "cannot be loaded", "publish it again")


@pytest.fixture
def applications(bind, monkeypatch):
    """Return what asks a Ray, which outlives the server as a cluster does, for its applications."""
    from ray import serve

    connect("local")
    monkeypatch.setattr(ray_online, "disconnect", lambda: None)
    return lambda: serve.status().applications


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


def test_server_whose_model_cannot_be_loaded_names_it_and_leaves_no_application(applications, bind):
    models = {"broken": Model(replica_type(fail), 1)}
    with (
        pytest.raises(ConfigError, match=r"model broken: cannot be loaded \(publish it again\)"),
        online("local", models, ingress_type(), bind, 1),
    ):
        pass
    assert applications() == {}


def test_server_that_is_interrupted_while_its_model_loads_leaves_no_application(
    applications, bind, tmp_path
):
    begun, interrupted_at = tmp_path / "begun", []

    def load():
        begun.touch()
        time.sleep(300)

    def interrupt():
        while not begun.exists():
            time.sleep(0.1)
        interrupted_at.append(time.monotonic())
        _thread.interrupt_main()

    models = {"slow": Model(replica_type(load), 1)}
    Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt), online("local", models, ingress_type(), bind, 1):
        pass
    assert time.monotonic() - interrupted_at[0] < 30
    assert applications() == {}


def test_server_does_not_replace_that_of_another_store_on_the_cluster(applications, bind):
    with online("local", {}, ingress_type(), bind, 1):
        expected = pytest.raises(ConfigError, match=f"--port {bind[1]}: the cluster has")
        with expected, online("local", {}, ingress_type(), bind, 1):
            pass
        assert httpx2.get(f"http://{bind[0]}:{bind[1]}/").json() == "answer"
