"""The stock client of OpenAI against a live server, with another address and nothing else."""

import base64
import json

import numpy as np
import pytest

from tests.support.video_files import moving_noise, write_video
from videoar.media.decode import decode_clip

pytestmark = pytest.mark.slow  # videos are made
POLL_MS = 50


@pytest.fixture(scope="module")
def openai():
    """Import what takes half a second, and what `make test-fast` only collects."""
    import openai  # an error if it is not installed

    return openai


@pytest.fixture
def client(live, openai):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def frames_of(client, job):
    """Return the pixels of a finished video; its metadata names its job."""
    return decode_clip(client.videos.download_content(job.id).read())


def test_videos_create_poll_download_list_delete(client, openai, tmp_path):
    job = client.videos.create(prompt="a red circle", seconds="1", extra_body={"seed": 3})
    assert (job.object, job.model, job.size, job.seconds) == ("video", "champion", "32x32", "1")
    done = client.videos.poll(job.id, poll_interval_ms=POLL_MS)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    assert done.completed_at >= done.created_at == job.created_at
    content = client.videos.download_content(job.id)
    content.write_to_file(tmp_path / "video.mp4")
    assert len(decode_clip(tmp_path / "video.mp4")) == 9
    assert done.lineage["model_snapshot"] in content.response.headers["videoar-lineage"]
    assert client.videos.list(limit=1).data[0].id == job.id
    assert client.videos.delete(job.id).deleted
    with pytest.raises(openai.NotFoundError) as error:
        client.videos.retrieve(job.id)
    assert error.value.code == "video_not_found"


def test_videos_equal_seeds_equal_pixels_over_http_and_from_python(client, loaded, tmp_path):
    settings = {"temperature": 0.9, "guidance": 2}

    def make():
        job = client.videos.create(
            prompt="a circle", seconds="1", extra_body={"seed": 5, **settings}
        )
        client.videos.poll(job.id, poll_interval_ms=POLL_MS)
        return frames_of(client, job)

    sampled = loaded.sample("a circle", seed=5, seconds=1, **settings)
    alone = decode_clip(sampled.save(tmp_path / "alone.mp4"))
    assert np.array_equal(make(), alone)
    assert np.array_equal(make(), alone)


def test_videos_list_pages_in_both_orders(client):
    ids = [client.videos.create(prompt=f"number {i}").id for i in range(5)]
    newest = [job.id for job, _ in zip(client.videos.list(limit=2), range(5), strict=False)]
    assert newest == ids[::-1]
    oldest = [job.id for job in client.videos.list(limit=2, order="asc")]
    assert oldest[-5:] == ids


def test_videos_input_reference_image_and_data_url(client, png):
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    file = {"input_reference": ("start.png", png, "image/png"), "extra_body": {"seed": 1}}
    text = {"extra_body": {"seed": 1, "input_reference": {"image_url": url}}}
    made = [client.videos.create(prompt="go on", **fields) for fields in (file, text)]
    done = [client.videos.poll(job.id, poll_interval_ms=POLL_MS) for job in made]
    assert [job.status for job in done] == ["completed", "completed"]
    assert np.array_equal(*[frames_of(client, job) for job in done])


def test_videos_input_reference_video_of_one_second(client, tmp_path):
    path = write_video(tmp_path / "start.mp4", moving_noise(8, size=(32, 32)), 8.0)
    job = client.videos.create(prompt="go on", seconds="4", input_reference=path)
    assert client.videos.poll(job.id, poll_interval_ms=POLL_MS).status == "completed"


def test_models_list_and_retrieve(client, openai):
    (model,) = client.models.list().data
    assert client.models.retrieve("champion") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")
    assert (model.id, model.object, model.owned_by) == ("champion", "model", "videoar")


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"prompt": ""}, "BadRequestError", "prompt"),
        ({"prompt": "x", "model": "sora-2"}, "NotFoundError", "model"),
        ({"prompt": "x", "size": "720x1280"}, "BadRequestError", "size"),
        ({"prompt": "x", "seconds": "601"}, "BadRequestError", "seconds"),
        ({"prompt": "x", "extra_body": {"sead": 1}}, "BadRequestError", "sead"),
        (
            {"prompt": "x", "input_reference": b"no image"},
            "BadRequestError",
            "input_reference",
        ),
    ],
    ids=lambda value: json.dumps(value, default=str)[:40] if isinstance(value, dict) else "",
)
def test_videos_create_bad_field_error_names_it(client, openai, fields, error, param):
    with pytest.raises(getattr(openai, error)) as raised:
        client.videos.create(**fields)
    assert raised.value.param == param
