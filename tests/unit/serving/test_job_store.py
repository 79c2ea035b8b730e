"""Records of jobs: idempotency, attempts, results, deletion, kills, pages."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from videoar.core.errors import SnapshotConflictError
from videoar.serving.job_store import JobStore
from videoar.serving.video_job import PromptChange, VideoRequest

NO_JOB = "video_fe5de0a093d38055717cc9d1707417f7"
"""The form of an id, but of no job. Not drawn: xdist needs the same tests in every worker."""
REQUEST = VideoRequest(model="champion", prompt="a red ball", seconds=1, size="32x32")


@pytest.fixture
def jobs(store):
    return JobStore(store)


def create(jobs, **options):
    return jobs.create(REQUEST, "model:1", **options)


def completed(job):
    return job.model_copy(update={"status": "completed", "progress": 100})


def keys_of(store, job):
    return [info.key for info in store.objects.list("serving/") if job.id in info.key]


def test_created_job_is_found_and_has_a_seed_of_its_own(jobs):
    first, second = create(jobs), create(jobs)
    assert jobs.get(first.id) == first
    assert first.status == "queued"
    assert first.model_snapshot == "model:1"
    assert first.request.seed != second.request.seed


def test_prompt_that_two_attempts_take_holds_where_the_first_one_has_recorded_it(jobs):
    job = jobs.create(REQUEST.model_copy(update={"stream": True}), "model:1")
    jobs.request_prompt(job.id, "a cube")
    assert [jobs.requested_prompt(job.id, number) for number in range(2)] == ["a cube", None]
    first, second = (PromptChange(at_s=at_s, prompt="a cube") for at_s in (0.5, 1.0))
    jobs.change_prompt(job.id, 0, first)
    jobs.change_prompt(job.id, 0, first)  # again, after a lost answer
    with pytest.raises(SnapshotConflictError):
        jobs.change_prompt(job.id, 0, second)
    assert jobs.changes(job.id) == {0: first}
    assert jobs.get(job.id).request.prompt_changes == (first,)
    assert [each.request.prompt_changes for each in jobs.unfinished()] == [(first,)]


def test_nothing_of_a_deleted_job_is_left_by_a_prompt_that_comes_late(jobs, store):
    job = create(jobs)
    jobs.delete(job.id)
    jobs.request_prompt(job.id, "a cube")
    jobs.change_prompt(job.id, 0, PromptChange(at_s=0.5, prompt="a cube"))
    jobs.finish(completed(job), 1, b"video", b"tokens")
    assert keys_of(store, job) == [f"serving/deleted/{job.id}.json"]


@pytest.mark.parametrize("id_", ["", "video_1", "../format", "video_" + "g" * 32, NO_JOB])
def test_unknown_id_is_no_job(jobs, id_):
    assert jobs.get(id_) is None
    assert jobs.delete(id_) is None
    assert jobs.content(id_) is None


def test_racing_requests_with_one_idempotency_key_are_one_job(jobs):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create(jobs, idempotency_key="k"), range(16)))
    assert {job.id for job in made} == {made[0].id}
    assert len(set(map(str, made))) == 1
    assert [job.id for job in jobs.unfinished()] == [made[0].id]


def test_idempotency_key_of_another_request_or_of_a_deleted_job_is_a_conflict(jobs):
    job = create(jobs, idempotency_key="k")
    other = REQUEST.model_copy(update={"prompt": "a blue ball"})
    with pytest.raises(SnapshotConflictError, match="another request"):
        jobs.create(other, "model:1", idempotency_key="k")
    jobs.delete(job.id)
    with pytest.raises(SnapshotConflictError, match="deleted"):
        create(jobs, idempotency_key="k")


def test_attempt_is_claimed_once_and_not_after_the_end(jobs):
    job = create(jobs)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: jobs.claim(job.id, 1, f"replica {i}"), range(16)))
    assert won.count(True) == 1
    assert jobs.attempts(job.id) == 1
    assert jobs.claim(job.id, 2, "replica")
    jobs.finish(completed(job), 2, b"mp4")
    assert not jobs.claim(job.id, 3, "replica")


def test_first_result_counts_and_videos_of_later_ones_are_removed(jobs, store):
    job = create(jobs)
    assert jobs.finish(completed(job), 1, b"first") == completed(job)
    cancelled = job.model_copy(update={"status": "cancelled"})
    assert jobs.finish(cancelled).status == "completed"
    assert jobs.finish(completed(job), 2, b"second").status == "completed"
    assert jobs.content(job.id) == b"first"
    assert [key for key in keys_of(store, job) if key.endswith(".mp4")] == [
        f"serving/videos/{job.id}/0001.mp4"
    ]
    assert jobs.unfinished() == []


def test_deleted_job_leaves_only_the_record_of_it(jobs, store):
    job = create(jobs, init=b"png")
    assert jobs.init(job.id) == b"png"
    jobs.claim(job.id, 1, "replica")
    jobs.finish(completed(job), 1, b"mp4")
    assert jobs.delete(job.id) == completed(job)
    assert jobs.get(job.id) is None
    assert jobs.content(job.id) is None
    assert keys_of(store, job) == [f"serving/deleted/{job.id}.json"]


def test_job_that_is_deleted_while_it_runs_is_not_finished(jobs, store):
    job = create(jobs)
    jobs.claim(job.id, 1, "replica")
    jobs.delete(job.id)
    assert not jobs.claim(job.id, 2, "replica")
    assert jobs.finish(completed(job), 1, b"mp4") is None
    assert keys_of(store, job) == [f"serving/deleted/{job.id}.json"]
    assert jobs.unfinished() == []


def test_list_has_pages_in_both_orders(jobs):
    made = [create(jobs).id for _ in range(5)]
    made.sort(reverse=True)  # by time; those of one millisecond in any order
    newest = [job.id for job in jobs.page(limit=2)]
    assert newest == made[:2:-1][:2]
    rest = [job.id for job in jobs.page(after=newest[-1], limit=9)]
    assert newest + rest == made[::-1]
    assert [job.id for job in jobs.page(order="asc", limit=3)] == made[:3]
    assert [job.id for job in jobs.page(order="asc", after=made[2])] == made[3:]


def test_page_of_a_long_list_takes_few_requests(jobs, store, monkeypatch):
    for _ in range(30):
        create(jobs)
    seen = []
    for name in ("find", "list", "size"):
        real = getattr(store.objects, name)
        monkeypatch.setattr(
            store.objects, name, lambda *a, _real=real, **k: seen.append(a) or _real(*a, **k)
        )
    assert len(jobs.page(limit=10)) == 10
    assert len(seen) == 1 + 2 * 10


CREATE = """
import sys
from videoar.serving.job_store import JobStore
from videoar.serving.video_job import VideoRequest
from videoar.storage.store import open_store
jobs = JobStore(open_store(sys.argv[1]))
request = VideoRequest.model_validate_json(sys.argv[2])
job = jobs.create(request, "model:1", "key", b"png")
print(job.id, flush=True)
jobs.claim(job.id, 1, "replica")
jobs.finish(job.model_copy(update={"status": "completed", "progress": 100}), 1, b"mp4")
jobs.delete(job.id)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "unfinished", "content"),
    [
        ("job-announced", 0, None), ("video-uploaded", 1, None), ("job-finished", 0, b"mp4"),
     ("job-deleted", 0, None)],
)  # fmt: skip
def test_kill_leaves_a_job_that_is_accepted_or_not(store, point, unfinished, content):
    code = "import os; os.environ['VIDEOAR_CRASH_AT'] = '" + point + "'\n" + CREATE
    command = [sys.executable, "-c", code, store.url, REQUEST.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    jobs = JobStore(store)
    found = jobs.unfinished()
    assert len(found) == unfinished
    id_ = done.stdout.strip()
    assert jobs.content(id_) == content
    if point == "job-deleted":
        keys = [info.key for info in store.objects.list("serving/") if id_ in info.key]
        assert keys == [f"serving/deleted/{id_}.json"]
    elif point == "job-announced":  # the client's retry with its key is accepted
        assert create(jobs, idempotency_key="key", init=b"png").status == "queued"
    assert [job.id for job in JobStore(store).unfinished()] == [
        job.id for job in jobs.page() if not job.finished
    ]
