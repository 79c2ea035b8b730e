"""A replica and the service in this process: same videos, turns, cancels, deadlines, promotions."""

import asyncio
import json
import time
from contextlib import aclosing, asynccontextmanager
from io import BytesIO

import av
import numpy as np
import pytest

from tests.support.published_model import published, transformer
from videoar.admin.export import export
from videoar.admin.loaded_model import load_stored
from videoar.core.errors import ConfigError, StageError, WorkerLostError
from videoar.serving.dispatcher import Dispatcher
from videoar.serving.job_store import JobStore
from videoar.serving.replica import ModelReplica, ReplicaOptions
from videoar.serving.serve import LocalReplicas
from videoar.serving.video_job import PromptChange, VideoRequest
from videoar.storage.store import open_store
from videoar.training.model_store import ClipShape
from videoar.training.sampler_options import ProjectedGuidance

# Each test runs a whole model.
pytestmark = pytest.mark.slow

REQUEST = VideoRequest(model="champion", prompt="a red ball", seconds=1, size="32x32", seed=3)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    store = open_store((tmp_path_factory.mktemp("serving") / "store").as_uri())
    model = published(store)
    store.refs.advance("champion", model.id, expect=None, evidence={})
    return store.url


@pytest.fixture
def store(url):
    return open_store(url)


@pytest.fixture(scope="module")
def replica(url):
    replica = ModelReplica(open_store(url), ReplicaOptions(model="champion", poll_s=0.05))
    yield replica
    replica.close()


class Local:
    """One replica of this process, which can be lost."""

    def __init__(self, replica):
        self.replica, self.lost = replica, 0

    async def run(self, job, attempt):
        async with aclosing(self.replica.run(job, attempt)) as events:
            async for event in events:
                if self.lost and event.__class__.__name__ == "JobEvent":
                    self.lost -= 1
                    raise WorkerLostError("replica", "killed")
                yield event

    async def status(self, model):
        return self.replica.status()


class LostAtPrompt(LocalReplicas):
    """One replica of this process, which is lost when it has recorded a change of the prompt."""

    def __init__(self, replica):
        super().__init__({"champion": replica})
        self.lost = 0

    async def run(self, job, attempt):
        async with aclosing(super().run(job, attempt)) as events:
            async for event in events:
                if getattr(event, "kind", "") == "prompt" and not self.lost:
                    self.lost += 1
                    yield event
                    raise WorkerLostError("replica", "killed")
                yield event


@asynccontextmanager
async def serving(store, replica):
    dispatcher = Dispatcher(
        store, Local(replica) if isinstance(replica, ModelReplica) else replica, ["champion"]
    )
    await dispatcher.start()
    while not (await dispatcher.readiness()).ready:
        await asyncio.sleep(0.01)
    yield dispatcher
    await dispatcher.drain(30)


async def finished(dispatcher, job):
    async with aclosing(dispatcher.events(job.id)) as events:
        seen = [event async for event in events]
    return await dispatcher.get(job.id), seen


def frames(mp4):
    with av.open(BytesIO(mp4)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def tags(mp4):
    with av.open(BytesIO(mp4)) as file:
        return dict(file.metadata)


def test_video_of_a_job_is_the_one_that_the_model_makes_alone(store, replica, tmp_path):
    drawn = {"temperature": (2.0, 1.0, 0.5), "guidance_interval": (0.0, 0.5)}
    projected = {"guidance": 8.0, "apg": ProjectedGuidance(eta=0.5)}
    requests = [
        REQUEST.model_copy(update={"seed": seed, "prompt": prompt, **options})
        for seed, prompt, options in (
            (3, "a red ball", {}), (4, "a blue ball", {}), (4, "a cube", drawn),
            (4, "a cube", projected),
        )
    ]  # fmt: skip

    async def main():
        async with serving(store, replica) as service:
            jobs = [await service.create(request, None) for request in requests]
            done = [await finished(service, job) for job in jobs]
            return done, [await service.content(job.id) for job in jobs]

    done, videos = asyncio.run(main())
    loaded = load_stored(store, "champion")
    for (job, _), mp4 in zip(done, videos, strict=True):
        assert job.status == "completed"
        names = ("guidance", "temperature", "guidance_interval", "apg")
        options = {name: getattr(job.request, name) for name in names}
        made = loaded.sample(job.request.prompt, seed=job.request.seed, seconds=1, **options)
        alone = made.save(tmp_path / "alone.mp4").read_bytes()
        assert np.array_equal(frames(mp4), frames(alone))
        found = json.loads(tags(mp4)["comment"])
        assert found == json.loads(made.tags["comment"]) | {"job": job.id}
        assert found["model"] == job.model_snapshot
        assert job.tokenizer_digest == loaded.card.tokenizer.digest
        assert job.progress == 100


def test_events_tell_passes_scales_and_pictures(store, replica):
    async def main():
        async with serving(store, replica) as service:
            job = await service.create(REQUEST.model_copy(update={"stream": True}), None)
            return await finished(service, job), await service.content(job.id)

    (_, events), mp4 = asyncio.run(main())
    progress = [event for event in events if event.kind == "progress" and event.wave]
    assert [event.wave for event in progress] == list(range(1, progress[0].waves + 1))
    assert [event.scale for event in progress[:4]] == [0, 1, 2, 0]
    assert events[-1].kind == "done"
    sent = [image for event in events for image in event.images if event.kind == "frames"]
    assert [e.frame for e in events if e.kind == "frames"] == [0, 1, 5]
    pictures = np.concatenate([frames(image) for image in sent])
    assert pictures.shape == frames(mp4).shape
    assert np.abs(pictures.astype(int) - frames(mp4)).mean() < 8


def test_previews_become_the_frame(store, replica):
    async def main():
        async with serving(store, replica) as service:
            seen = []
            for seed in range(3):  # a share of the time only
                job = await service.create(REQUEST.model_copy(update={"seed": seed}), None)
                seen += (await finished(service, job))[1]
                await asyncio.sleep(0.3)
            return [event for event in seen if event.kind == "progress" and event.images]

    previews = asyncio.run(main())
    assert previews
    assert all(frames(image).shape == (1, 32, 32, 3) for e in previews for image in e.images)


def test_same_idempotency_key_is_one_job(store, replica):
    async def main():
        async with serving(store, replica) as service:
            first, second = await asyncio.gather(*(service.create(REQUEST, "k") for _ in range(2)))
            await finished(service, first)
            third = await service.create(REQUEST, "k")
            return first.id, second.id, third.id, third.status

    first, second, third, status = asyncio.run(main())
    assert first == second == third
    assert status == "completed"


def test_short_video_is_not_blocked_by_a_long_one(store, replica):
    async def main():
        async with serving(store, replica) as service:
            long = await service.create(REQUEST.model_copy(update={"seconds": 60}), None)
            async with aclosing(service.events(long.id)) as events:
                async for event in events:
                    if event.wave:
                        break
            short = await service.create(REQUEST, None)
            done, _ = await finished(service, short)
            unfinished = await service.get(long.id)
            await service.delete(long.id)
            return done, unfinished, await service.get(long.id)

    done, long, deleted = asyncio.run(main())
    assert done.status == "completed"
    assert (long.status, deleted) == ("in_progress", None)
    assert 0 < long.progress < 100


def test_deadline_ends_a_job_between_passes(store, replica):
    async def main():
        async with serving(store, replica) as service:
            job = await service.create(
                REQUEST.model_copy(update={"seconds": 300, "deadline_s": 0.3}), None
            )
            start = time.monotonic()
            done, events = await finished(service, job)
            return done, events[-1].kind, time.monotonic() - start

    job, last, seconds = asyncio.run(main())
    assert (job.status, job.error.code, last) == ("failed", "deadline_exceeded", "failed")
    assert seconds < 10


def test_lost_replica_is_followed_by_another_attempt(store, replica):
    local = Local(replica)
    local.lost = 3

    async def main():
        async with serving(store, local) as service:
            job = await service.create(REQUEST, None)
            return (await finished(service, job))[0]

    job = asyncio.run(main())
    assert job.status == "completed"
    assert JobStore(store).attempts(job.id) == 4
    assert JobStore(store).result(job.id).attempt == 4


def test_job_that_ends_every_replica_fails(store, replica, monkeypatch):
    monkeypatch.setattr("videoar.serving.dispatcher._FIRST_WAIT_S", 0.001)
    local = Local(replica)
    local.lost = 100

    async def main():
        async with serving(store, local) as service:
            job = await service.create(REQUEST, None)
            return (await finished(service, job))[0]

    job = asyncio.run(main())
    assert (job.status, job.error.code) == ("failed", "replica_lost")


def test_job_is_completed_after_the_store_was_gone_for_some_time(store, replica, monkeypatch):
    monkeypatch.setattr("videoar.serving.dispatcher._MAX_WAIT_S", 0.05)
    root, elsewhere = store.objects.root, store.objects.root.with_name("elsewhere")

    async def main():
        async with serving(store, replica) as service:
            job = await service.create(REQUEST, None)
            async with aclosing(service.events(job.id)) as events:
                async for event in events:
                    if event.wave:
                        break
            root.rename(elsewhere)
            root.touch()  # as if a file system was not mounted, and cannot be written to
            await asyncio.sleep(2)
            root.unlink()
            elsewhere.rename(root)
            return (await finished(service, job))[0]

    assert asyncio.run(main()).status == "completed"


def test_unfinished_jobs_are_taken_up_by_the_next_server(store, replica):
    jobs = JobStore(store)
    accepted = jobs.create(REQUEST, store.refs.head("champion"))
    begun = jobs.create(REQUEST, store.refs.head("champion"))
    jobs.claim(begun.id, 1, "killed")

    async def main():
        async with serving(store, replica) as service:
            return [(await finished(service, job))[0] for job in (accepted, begun)]

    assert [job.status for job in asyncio.run(main())] == ["completed", "completed"]
    assert jobs.result(begun.id).attempt == 2
    assert jobs.unfinished() == []


def test_drain_finishes_what_runs_and_leaves_the_rest(store, replica):
    async def main():
        async with serving(store, replica) as service:
            job = await service.create(REQUEST, None)
            async with aclosing(service.events(job.id)) as events:
                async for event in events:
                    if event.wave:
                        break
            await service.drain(30)
            return await service.get(job.id), (await service.readiness()).ready

    job, ready = asyncio.run(main())
    assert (job.status, ready) == ("completed", False)


@pytest.mark.parametrize("changes", [(("at_s", 0.5),), ()], ids=str)
def test_prompt_change_alters_only_what_follows(store, replica, changes):
    changed = REQUEST.model_copy(
        update={"prompt_changes": tuple(PromptChange(at_s=s, prompt="a cube") for _, s in changes)}
    )

    async def main():
        async with serving(store, replica) as service:
            made = [await service.create(request, None) for request in (REQUEST, changed)]
            ids = [(await finished(service, job))[0].sample_id for job in made]
            return ids, [frames(await service.content(job.id)) for job in made]

    ids, (plain, other) = asyncio.run(main())
    assert np.abs(plain[0].astype(int) - other[0]).mean() < 3  # H.264 spends its bits elsewhere
    assert np.array_equal(plain, other) == (not changes)
    assert (ids[0] == ids[1]) == (not changes)


def test_prompt_sent_to_a_running_job_is_recorded_and_changes_no_other_job(store, replica):
    request = REQUEST.model_copy(update={"seconds": 30})
    local = LostAtPrompt(replica)

    async def main():
        async with serving(store, local) as service:
            sent = request.model_copy(
                update={"stream": True, "prompt_changes": (PromptChange(at_s=29, prompt="a cone"),)}
            )
            job, other = [
                await service.create(each, None)
                for each in (sent, sent.model_copy(update={"seed": 4}))
            ]
            changes = []
            async with aclosing(service.events(job.id)) as events:
                async for event in events:
                    if event.kind == "frames" and not changes:
                        assert await service.change_prompt(job.id, "a green box")
                        assert await service.change_prompt(job.id, "a cube")
                        changes.append(None)
                    elif event.kind == "prompt":
                        changes.append(event.change)
            job, other = [(await finished(service, each))[0] for each in (job, other)]
            assert not await service.change_prompt(job.id, "a cube")
            offline = [
                await service.create(each.request.model_copy(update={"stream": False}), None)
                for each in (job, other)
            ]
            again = [(await finished(service, each))[0] for each in offline]
            made = [await service.content(each.id) for each in (job, other, *again)]
            return changes[1:], (job, other, *again), [frames(mp4) for mp4 in made]

    changes, jobs, videos = asyncio.run(main())
    assert local.lost == 1
    assert JobStore(store).result(jobs[0].id).attempt == 2
    assert changes[-1].prompt == "a cube"
    assert 0 < changes[-1].at_s < 29
    assert jobs[0].request.prompt_changes == (*changes, PromptChange(at_s=29, prompt="a cone"))
    assert [len(job.request.prompt_changes) for job in jobs[1::2]] == [1, 1]
    for index in range(2):
        assert jobs[index].sample_id == jobs[index + 2].sample_id
        assert np.array_equal(videos[index], videos[index + 2])
    assert JobStore(store).tokens(jobs[0].id)
    assert len(list(store.objects.list(f"serving/changes/{jobs[0].id}/"))) == len(changes)
    JobStore(store).delete(jobs[0].id)
    for kind in ("changes", "prompts", "videos"):
        assert not list(store.objects.list(f"serving/{kind}/{jobs[0].id}/"))


def test_damaged_init_fails_the_job_with_one_line(store, replica):
    request = REQUEST.model_copy(update={"init_sha256": "0" * 64})

    async def main():
        async with serving(store, replica) as service:
            job = await service.create(request, None, b"no image")
            return (await finished(service, job))[0]

    job = asyncio.run(main())
    assert (job.status, job.error.code) == ("failed", "invalid_init")
    assert "/" not in job.error.message


def test_promotion_is_picked_up_and_jobs_of_the_version_before_are_finished(store, replica):
    before = store.refs.head("champion")
    old = JobStore(store).create(REQUEST, before)
    model = store.snapshot(before)
    digest = model.table(["tokenizer_digest"])["tokenizer_digest"][0].as_py()
    parents, clips = model.commit.provenance.parents, ClipShape(8.0, 9)
    newer = transformer(store, digest, name="newer", parents=parents, clips=clips)
    store.refs.advance("champion", newer.id, expect=0, evidence={})

    async def main():
        async with serving(store, replica) as service:
            while (await service.readiness()).models[0].snapshot == before:
                await asyncio.sleep(0.05)
            new = await service.create(REQUEST, None)
            return [(await finished(service, job))[0] for job in (old, new)]

    jobs = asyncio.run(main())
    assert [job.status for job in jobs] == ["completed", "completed"]
    assert [job.model_snapshot for job in jobs] == [before, newer.id]


def test_several_models_are_served_by_name_an_export_among_them(store, replica, tmp_path):
    head = store.refs.head("champion")
    export(store, head, "safetensors", str(tmp_path / "model"))
    path = str(tmp_path / "model")
    exported = ModelReplica(store, ReplicaOptions(model=path))

    async def main():
        local = LocalReplicas({"champion": replica, path: exported})
        service = Dispatcher(store, local, ["champion", path])
        await service.start()
        while not (await service.readiness()).ready:
            await asyncio.sleep(0.01)
        jobs = [
            await service.create(REQUEST.model_copy(update={"model": name}), None)
            for name in ("champion", path)
        ]
        ended = [(await finished(service, job))[0] for job in jobs]
        videos = [frames(await service.content(job.id)) for job in jobs]
        with pytest.raises(ConfigError, match="is not served"):
            await service.create(REQUEST.model_copy(update={"model": "other"}), None)
        await service.drain(30)
        return ended, videos

    ended, (of_ref, of_export) = asyncio.run(main())
    exported.close()
    assert [job.status for job in ended] == ["completed", "completed"]
    assert ended[0].sample_id == ended[1].sample_id
    assert np.array_equal(of_ref, of_export)


@pytest.mark.parametrize("warm_up_s", [0.0, 60.0])
def test_warm_up_is_bounded_in_time(store, warm_up_s):
    options = ReplicaOptions(model="champion", warm_up_s=warm_up_s)
    if not warm_up_s:
        with pytest.raises(StageError, match="warm-up takes more than 0 s"):
            ModelReplica(store, options)
    else:
        ModelReplica(store, options).close()
