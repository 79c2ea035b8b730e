"""Jobs while they run: server-sent events and sessions."""

import base64
import json
import threading

import httpx2
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.video_service import UNLIMITED, LiveServer, OneByOne
from videoar.media.decode import decode_clip
from videoar.serving.job_store import JobStore
from videoar.serving.limits import Limits
from videoar.serving.server import ServerSettings
from videoar.storage.layout import job_tokens_key

pytestmark = pytest.mark.slow  # videos are made
CREATE = {"type": "create", "prompt": "a circle", "seconds": 1, "seed": 1}


@pytest.fixture
def gate():
    return threading.Event()


@pytest.fixture
def held(served_store, loaded, gate):
    """A server whose jobs wait for `gate`, and which has room for two streams."""
    limits = UNLIMITED.model_copy(update={"max_streams": 2})
    with LiveServer(OneByOne(served_store, loaded, gate), ServerSettings(limits=limits)) as server:
        yield server
        gate.set()


@pytest.fixture
def socket(live):
    with connect(f"ws://{live.host}/v1/sessions") as socket:
        yield socket


def tell(socket, **message):
    socket.send(json.dumps(message))


def until(socket, kind):
    """Return the messages up to one of a kind."""
    messages = []
    while not messages or messages[-1]["type"] != kind:
        messages.append(json.loads(socket.recv(timeout=30)))
        assert messages[-1]["type"] != "error" or kind == "error", messages[-1]
    return messages


def events_of(response):
    """Yield kind and data of server-sent events."""
    kind = ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def test_events_of_a_running_job_end_with_done(held, gate):
    with httpx2.Client(base_url=held.url, verify=False, timeout=30) as client:
        job = client.post("/v1/videos", json={"prompt": "a circle"}).json()
        with client.stream("GET", f"/v1/videos/{job['id']}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = events_of(response)
            kind, data = next(events)
            assert (kind, data["job_id"], data["waves"]) == ("progress", job["id"], 1)
            assert base64.b64decode(data["images"][0]).startswith(b"\x89PNG")
            gate.set()
            assert [kind for kind, _ in events] == ["done"]
        with client.stream("GET", f"/v1/videos/{job['id']}/events") as response:
            assert [kind for kind, _ in events_of(response)] == ["done"]


def test_streams_over_the_limit_are_told_to_come_again(held):
    with httpx2.Client(base_url=held.url, verify=False, timeout=30) as client:
        job = client.post("/v1/videos", json={"prompt": "a circle"}).json()
        address = f"/v1/videos/{job['id']}/events"
        with client.stream("GET", address) as first, client.stream("GET", address) as second:
            watched = events_of(first), events_of(second)
            assert [next(events)[0] for events in watched] == ["progress", "progress"]
            with client.stream("GET", address) as third:
                ((kind, data),) = events_of(third)
            assert (kind, data["error"]["code"]) == ("error", "too_many_streams")
            assert "videoar_streams 2.0" in client.get("/metrics").text


def test_session_create_then_continue_is_one_longer_video(socket, live):
    tell(socket, **CREATE)
    first, *events, done, last = [*until(socket, "done"), *until(socket, "video")]
    frames = [image for event in events if event["type"] == "frames" for image in event["images"]]
    assert len(frames) == 9
    assert all(base64.b64decode(image).startswith(b"\xff\xd8") for image in frames)
    assert (first["video"]["status"], last["video"]["status"]) == ("queued", "completed")
    assert done["job_id"] == first["video"]["id"]
    tell(socket, type="prompt", prompt="a square")
    tell(socket, type="continue", seconds=2, greedy=True)
    (begun,) = until(socket, "video")
    assert (begun["video"]["prompt"], begun["video"]["seconds"]) == ("a square", "3")
    assert (first["video"]["begins_with"], begun["video"]["begins_with"]) == (None, "latents")
    until(socket, "done")
    (end,) = until(socket, "video")
    assert end["video"]["status"] == "completed", end
    before, after = (
        decode_clip(httpx2.get(f"{live.url}/v1/videos/{job['video']['id']}/content").content)
        for job in (last, end)
    )
    assert (len(before), len(after)) == (9, 25)
    jobs = JobStore(live.store)
    tokens = [jobs.tokens(job["video"]["id"]) for job in (last, end)]
    assert tokens[1].startswith(tokens[0])
    assert len(tokens[1]) == 7 / 3 * len(tokens[0])


def test_session_continues_the_decoded_video_where_its_latents_are_not_kept(
    socket, live, loaded, tmp_path
):
    tell(socket, **CREATE)
    *_, last = [*until(socket, "done"), *until(socket, "video")]
    live.store.objects.purge(job_tokens_key(last["video"]["id"], 1))
    tell(socket, type="continue")
    (begun,) = until(socket, "video")
    assert begun["video"]["begins_with"] == "file"
    until(socket, "done")
    (end,) = until(socket, "video")
    assert end["video"]["status"] == "completed", end
    before, after = (
        httpx2.get(f"{live.url}/v1/videos/{job['video']['id']}/content").content
        for job in (last, end)
    )
    init, seed = tmp_path / "init.mp4", end["video"]["seed"]
    init.write_bytes(before)
    alone = loaded.sample("a circle", seconds=2, seed=seed, init=init).save(tmp_path / "alone.mp4")
    assert np.array_equal(decode_clip(after), decode_clip(alone.read_bytes()))


def test_session_prompt_holds_from_the_next_frame_on_and_for_what_follows(socket):
    tell(socket, **CREATE | {"seconds": 20})
    until(socket, "frames")
    tell(socket, type="prompt", prompt="a square")
    *before, told = until(socket, "prompt")
    *after, _ = until(socket, "done")
    (end,) = until(socket, "video")
    change = told["change"]
    assert change["prompt"] == "a square"
    assert change["at_s"] == told["frame"] / 8
    assert end["video"]["prompt_changes"] == [change]
    assert (end["video"]["status"], end["video"]["prompt"]) == ("completed", "a circle")
    first, *waves = [m["wave"] for m in (*before, *after) if m["type"] == "progress" and m["wave"]]
    assert waves == list(range(first + 1, 1 + 3 * 41))
    tell(socket, type="continue", seconds=1)
    (begun,) = until(socket, "video")
    assert begun["video"]["prompt"] == "a square"
    until(socket, "done")


def test_session_cancel_stops_the_job_and_allows_another(held, gate):
    with connect(f"ws://{held.host}/v1/sessions") as socket:
        tell(socket, **CREATE)
        (job,) = until(socket, "video")
        tell(socket, **CREATE)
        assert until(socket, "error")[-1]["error"]["code"] == "busy"
        tell(socket, type="cancel")
        (cancelled,) = until(socket, "video")
        assert cancelled["video"]["error"]["code"] == "cancelled"
        address = f"{held.url}/v1/videos/{job['video']['id']}"
        assert httpx2.get(address).status_code == 404
        gate.set()
        tell(socket, **CREATE)
        until(socket, "done")


def test_session_left_by_the_client_leaves_its_job(held, gate):
    with connect(f"ws://{held.host}/v1/sessions") as socket:
        tell(socket, **CREATE)
        (job,) = until(socket, "video")
    gate.set()
    address = f"{held.url}/v1/videos/{job['video']['id']}"
    with httpx2.stream("GET", f"{address}/events", timeout=30) as response:
        assert [kind for kind, _ in events_of(response)][-1] == "done"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "invalid_body"),
        ("[" * 100_000, "invalid_body"),
        ("[]", "invalid_value"),
        ('{"type": "stop"}', "invalid_value"),
        ('{"type": ["create"]}', "invalid_value"),
        ('{"type": "create"}', "invalid_value"),
        ('{"type": "create", "prompt": "\\ud800"}', "invalid_value"),
        ('{"type": "create", "prompt": "a", "seconds": NaN}', "invalid_value"),
        ('{"type": "prompt"}', "invalid_value"),
        ('{"type": "continue"}', "nothing_to_continue"),
        ('{"type": "cancel"}', "nothing_to_cancel"),
    ],
)
def test_session_bad_message_is_answered_and_the_session_goes_on(socket, text, code):
    socket.send(text)
    assert until(socket, "error")[-1]["error"]["code"] == code
    tell(socket, **CREATE)
    until(socket, "done")


def test_session_without_key_is_denied(served_store, loaded):
    settings = ServerSettings(keys={"0" * 64: "one"}, limits=Limits())
    with (
        LiveServer(OneByOne(served_store, loaded), settings) as server,
        pytest.raises(InvalidStatus) as denied,
        connect(f"ws://{server.host}/v1/sessions"),
    ):
        pass
    assert denied.value.response.status_code == 401


def test_session_of_another_site_is_denied(live):
    address = f"ws://{live.host}/v1/sessions"
    with pytest.raises(InvalidStatus) as denied, connect(address, origin="https://example.com"):
        pass
    assert denied.value.response.status_code == 403
