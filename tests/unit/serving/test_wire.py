"""What a client of OpenAI sends, and the answers that it reads, as recorded bytes.

The requests are those of `openai` 3.57.0 (2026-11). A client that is built in keeps working when
the package in the environment is another one.
"""

import re

import pytest

BOUNDARY = "8978f2840a975fb4fe283e1e3e969989"
HEADERS = {
    "Accept": "application/json",
    "Authorization": "Bearer any",
    "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
    "User-Agent": "OpenAI/Python 3.57.0",
    "X-Stainless-Lang": "python",
}
CREATE = (
    b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na caf\xc3\xa9\r\n'
    b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nchampion\r\n'
    b'--B\r\nContent-Disposition: form-data; name="seconds"\r\n\r\n1\r\n'
    b'--B\r\nContent-Disposition: form-data; name="size"\r\n\r\n32x32\r\n'
    b'--B\r\nContent-Disposition: form-data; name="seed"\r\n\r\n3\r\n'
    b'--B\r\nContent-Disposition: form-data; name="greedy"\r\n\r\ntrue\r\n'
    b'--B\r\nContent-Disposition: form-data; name="guidance"\r\n\r\n2.5\r\n'
    b"--B--\r\n"
)
FILE = (
    b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n'
    b'--B\r\nContent-Disposition: form-data; name="input_reference"; filename="s.png"\r\n'
    b"Content-Type: image/png\r\n\r\n%s\r\n--B--\r\n"
)
ADDRESS = (
    b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n'
    b'--B\r\nContent-Disposition: form-data; name="input_reference[image_url]"\r\n\r\n'
    b"data:image/png;base64,AAAA\r\n--B--\r\n"
)


def send(http, body):
    body = body.replace(b"--B", b"--" + BOUNDARY.encode())
    return http.post("/v1/videos", content=body, headers=HEADERS)


def test_create_recorded_request_recorded_answer(http):
    answer = send(http, CREATE)
    job = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"video_[0-9a-f]{32}", job.pop("id"))
    assert isinstance(job.pop("created_at"), int)
    assert re.fullmatch(r"model:[0-9a-f]{16}", job["lineage"].pop("model_snapshot"))
    assert job == {
        "object": "video", "model": "champion", "status": "queued", "progress": 0,
        "completed_at": None, "expires_at": None, "error": None, "prompt": "a caf\u00e9",
        "seconds": "1", "size": "32x32", "remixed_from_video_id": None, "seed": 3,
        "guidance": 2.5, "temperature": None, "greedy": True, "prompt_changes": [],
        "guidance_interval": None, "begins_with": None, "apg": None,
        "deadline_s": None, "lineage": {"sample_id": None, "tokenizer_digest": None},
    }  # fmt: skip


@pytest.mark.slow
def test_create_recorded_file_is_decoded(http, png):
    assert send(http, FILE % png).status_code == 200
    for body in (FILE % b"\x89PNG", ADDRESS):
        answer = send(http, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_reference")


def test_list_and_delete_recorded_answers(http):
    ids = [send(http, CREATE).json()["id"] for _ in range(2)]
    page = http.get(f"/v1/videos?after={ids[1]}&limit=1&order=desc").json()
    assert [job["id"] for job in page.pop("data")] == ids[:1]
    has_more = page.pop("has_more")
    assert isinstance(has_more, bool)
    assert page == {"object": "list", "first_id": ids[0], "last_id": ids[0]}
    answer = http.delete(f"/v1/videos/{ids[0]}", headers={"Content-Type": "application/json"})
    assert answer.json() == {"id": ids[0], "object": "video.deleted", "deleted": True}


def test_error_recorded_answer(http):
    body = CREATE.replace(b"champion", b"sora-2")
    assert send(http, body).json() == {
        "error": {
            "message": "there is no model sora-2 (known: champion)",
            "type": "not_found_error", "param": "model", "code": "model_not_found",
        }
    }  # fmt: skip
