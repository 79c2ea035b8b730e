"""Random schedules of faults: drivers of one pipeline, what disturbs them, and an observer.

A schedule is a function of its number. Its drivers are children of a fork server that has imported
what they need; toy stages need neither torch nor Ray.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import yaml

from tests.support.child_process import preload, start
from tests.support.small_pipeline import sets, up_to_the_model
from tests.support.toy_runs import resume, toy_document, write_videos
from tests.support.toys import REGISTRY
from videoar.api.schedule import LocalLauncher
from videoar.core.errors import VideoARError
from videoar.core.settings import settings
from videoar.engine.inline import InlineEngine
from videoar.pipeline.fingerprint import code_closure
from videoar.pipeline.registry import BUILTIN, Registry
from videoar.pipeline.spec import load_pipeline, parse_pipeline
from videoar.records.run import Run
from videoar.records.run_record import load_run, run_ids
from videoar.runner.execute import Execution
from videoar.schedule.tick import Ticker
from videoar.storage import layout
from videoar.storage.delta_log import iter_commits
from videoar.storage.store import open_store
from videoar.testing.crash_points import crash_points
from videoar.testing.fault_store import FaultPlan, inject
from videoar.testing.processes import descendants, kill_tree, send, suspended, wait_until_stopped

preload(__name__)
_MODULES = "VIDEOAR_SOAK_MODULES"
for _module in Path(os.environ.get(_MODULES, os.devnull)).read_text(encoding="utf-8").split():
    with suppress(Exception):  # not all can be imported by their own
        if import_module(_module).__name__.startswith("videoar.stages."):
            code_closure(_module)  # the digests of its code, for all runs
LEASE_TTL_S = 1.0
_ONCE = ("crash of a tick", "crash in the queue")
KINDS = ("crash", "kill", "term", "suspend", "store", "two drivers", *_ONCE)
_RESUMES = 6
_TIMEOUT_S = 600
_WINDOW = datetime.fromisoformat("2026-11-01T03:00:00+00:00")


def points_of(*parts: str) -> list[str]:
    """Return the crash points in parts of the package."""
    prefixes = tuple(f"videoar.{part}" for part in parts)
    return [point.name for point in crash_points() if point.module.startswith(prefixes)]


_QUEUE = ["run-created", "run-queued"]
"""Crash points of a run that waits for an equal one."""
_LONG = ["fold.written", "record_fold.written"]
"""Crash points of 32 entries or shards: tests of folds, in `tests/unit`, have them."""
_RUNS = [p for p in points_of("storage", "pipeline", "runner") if p not in (*_QUEUE, *_LONG)]


@dataclass(frozen=True)
class Subject:
    """A pipeline to disturb."""

    name: str
    document: Mapping[str, object]
    registry: Registry
    outputs: Mapping[str, str]
    """Of an undisturbed run."""
    kinds: Sequence[str]
    points: Sequence[str]
    """Crash points that it reaches."""
    modules: Path
    """File with the names of the modules that a run imports: the fork server does, once."""
    seconds: float = 0.0
    """How long an undisturbed run takes."""


class _InThisProcess(LocalLauncher):
    """Runs of a tick, without their report pages."""

    def launch(self, spec, run_id, cause) -> None:
        if self.find(run_id) is None:
            Execution(
                spec, self._store, InlineEngine(), run_id, registry=self._registry, trigger=cause
            ).run()
        else:
            resume(self._store, run_id)


def drive(
    url: str,
    document: dict,
    registry: Registry,
    run_id: str,
    plan: FaultPlan | None,
    before: Callable[[], object] | None = None,
):
    """Start a run, or resume it; in a child process with the exit codes of the command line."""
    with _exit_code():
        if before:
            before()
        if plan:
            inject(plan)
        store = open_store(url, endpoint=settings().s3_endpoint)
        if store.ledger.read(layout.run_key(run_id)) is None:
            spec = parse_pipeline(document, "soak.yaml", registry)
            execution = Execution(spec, store, InlineEngine(), run_id=run_id, registry=registry)
            execution.wait = run_id == "run2"
            execution.run()
        elif load_run(store, run_id).status != "SUCCEEDED":
            spec = parse_pipeline(load_run(store, run_id).document, "soak.yaml", registry)
            Execution(spec, store, InlineEngine(), run_id=run_id, registry=registry).run()


def tick(url: str, path: str, registry: Registry, minutes: Sequence[int]):
    """Tick at minutes around the window of a schedule, in a child process."""
    with _exit_code():
        store = open_store(url)
        launcher = _InThisProcess(store, "inline", registry)
        for minute in minutes:
            spec = load_pipeline(Path(path), (), registry)
            for outcome in Ticker(
                spec, store, launcher, _WINDOW + timedelta(minutes=minute)
            ).tick():
                if outcome.error:
                    raise outcome.error


@contextmanager
def _exit_code() -> Iterator[None]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
    try:
        yield
    except KeyboardInterrupt:
        os._exit(130)
    except VideoARError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(error.exit_code)
    os._exit(0)


class Observer:
    """Looks at a store while it is written, and asserts that whatever it sees is whole."""

    def __init__(self, url: str, endpoint: str = "") -> None:
        self.store = open_store(url, endpoint=endpoint)
        self.looks = 0
        self._snapshots: set[str] = set()
        self._events: dict[str, list] = {}
        self._outputs: dict[tuple[str, str], str] = {}
        self._succeeded: set[str] = set()

    def look(self) -> None:
        """Read every record, ref and new snapshot.

        Raises:
            AssertionError: something is not whole, or what was final has changed.
        """
        self.looks += 1
        for snapshot in {commit.snapshot for commit in iter_commits(self.store.objects)}:
            self._require_whole(snapshot)
        for name in self.store.refs.names():
            for record in self.store.refs.history(name):
                self._require_whole(record["snapshot"])
        for run_id in run_ids(self.store):
            self._require_monotone(load_run(self.store, run_id))

    def _require_whole(self, snapshot: str) -> None:
        if snapshot not in self._snapshots:
            found = self.store.snapshot(snapshot)
            assert found.table(verify=True).num_rows == found.rows, snapshot
            if found.commit.rejects:
                self._require_whole(found.commit.rejects)
            self._snapshots.add(snapshot)

    def _require_monotone(self, run: Run) -> None:
        events = list(self.store.ledger.entries(layout.run_events(run.run_id)))
        before = self._events.get(run.run_id, [])
        assert events[: len(before)] == before, f"the events of {run.run_id} have changed"
        self._events[run.run_id] = events
        if run.status == "SUCCEEDED":
            self._succeeded.add(run.run_id)
        assert run.run_id not in self._succeeded or run.status == "SUCCEEDED", run.status
        for stage, snapshot in run.outputs.items():
            assert self._outputs.setdefault((run.run_id, stage), snapshot) == snapshot, stage
            self._require_whole(snapshot)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look all the time, from a thread."""
        end, problems = Event(), []

        def watch() -> None:
            pause_s = 0.0
            while not end.wait(pause_s):
                began = time.monotonic()
                try:
                    self.look()
                except (AssertionError, VideoARError, OSError, ValueError) as error:
                    problems.append(error)
                    return
                pause_s = 0.02 + 6 * (time.monotonic() - began)  # leaves the cores to the drivers

        thread = Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
        if problems:
            raise problems[0]


@dataclass
class Outcome:
    """What happened in schedules."""

    counts: Counter[str] = field(default_factory=Counter)
    looks: int = 0

    def add(self, other: "Outcome") -> None:
        self.counts += other.counts
        self.looks += other.looks


class Schedule:
    """One schedule: some disturbed drivers, then one that is not.

    Args:
        subject: the pipeline.
        seed: number of the schedule.
        folder: empty; removed by the caller.
    """

    allowed: frozenset[int] = frozenset({0, 5, 7, 130, -signal.SIGKILL, -signal.SIGTERM})
    """Exit codes of a disturbed driver; the last two: of a signal before the run began."""

    def __init__(self, subject: Subject, seed: int, folder: Path) -> None:
        os.environ[_MODULES] = str(subject.modules)  # before the fork server starts
        self.subject, self.seed, self.folder = subject, seed, folder
        self.url = (folder / "store").as_uri()
        self.environment: dict[str, str] = {}
        self.outcome, self.random = Outcome(), random.Random(f"{subject.name} {seed}")
        self.observer = Observer(self.url)

    @property
    def kinds(self) -> Sequence[str]:
        """Of the faults that its drivers may have."""
        return self.subject.kinds

    def play(self) -> Outcome:
        """Play it.

        Raises:
            AssertionError: it does not end as the undisturbed run does, or something was not whole.
        """
        first = self.subject.kinds[self.seed % len(self.subject.kinds)]
        more = [kind for kind in self.kinds if kind not in _ONCE]
        rest = self.random.choices(more, k=self.random.randrange(3))
        with self.observer.watching():
            for kind in (first, *rest):
                self.outcome.counts[f"fault: {kind}"] += 1
                getattr(self, kind.replace(" ", "_"))()
            self._finish()
        self._check()
        self.outcome.looks = self.observer.looks
        return self.outcome

    def _document(self, slow: bool) -> dict:
        document = deepcopy(dict(self.subject.document))
        if slow:
            document["stages"]["model"]["pause_s"] = 0.2
        return document

    def _start(
        self,
        run_id: str = "run1",
        plan: FaultPlan | None = None,
        at: str = "",
        slow: bool = False,
        before: Callable[[], object] | None = None,
    ):
        return start(
            drive, self.url, self._document(slow), self.subject.registry, run_id, plan, before,
            VIDEOAR_CRASH_AT=at, VIDEOAR_LEASE_TTL_S=str(LEASE_TTL_S),
            TMPDIR=str(self.folder / "temp"), **self.environment,
        )  # fmt: skip

    def _end(self, *drivers) -> None:
        for driver in drivers:
            driver.join(_TIMEOUT_S)
            code = driver.exitcode
            assert code in self.allowed, f"exit code {code}"
            self.outcome.counts[f"exit code: {code}"] += 1

    def _point(self, points: Sequence[str]) -> tuple[str, int]:
        """Return a crash point and a visit: for the first fault of a schedule, each in turn."""
        turn = self.seed // len(self.subject.kinds)
        if self.outcome.counts.total() == 1 and turn < len(points):
            return points[turn], 1
        return self.random.choice(points), self.random.choice([1, 1, 2, 3, 5])

    def _some_time(self) -> None:
        time.sleep(self.random.uniform(0, 1.1 * self.subject.seconds))

    def _hit(self, at: str) -> None:
        self.outcome.counts[f"point: {at.partition(':')[0]}"] += 1

    def crash(self) -> None:
        point, visit = self._point(self.subject.points)
        number = self.random.choice(["SIGKILL", "SIGKILL", "SIGTERM"])
        driver = self._start(at=f"{point}:{visit}:{number}")
        self._end(driver)
        if driver.exitcode:
            self._hit(point)

    def kill(self) -> None:
        driver = self._start()
        self._some_time()
        if self.random.random() < 0.5:
            kill_tree(driver.pid)
        else:
            driver.kill()
        self._end(driver)

    def kill_of_a_child(self) -> None:
        driver = self._start()
        self._some_time()
        send(signal.SIGKILL, *descendants(driver.pid)[-1:])
        self._end(driver)

    def term(self) -> None:
        driver = self._start()
        self._some_time()
        driver.terminate()
        self._end(driver)

    def suspend(self) -> None:
        point, visit = self._point(self.subject.points)
        is_at_point = self.random.random() < 0.7
        at = f"{point}:{visit}:SIGSTOP" if is_at_point else ""
        driver = self._start(at=at)
        if is_at_point and wait_until_stopped(driver.pid, 60):
            self._hit(point)
        elif not is_at_point:
            self._some_time()
        with suspended(driver.pid):
            self._end(self._start())  # waits for the time to live, then takes over
        self._end(driver)

    def store(self) -> None:
        chance = self.random
        log = self.folder / "faults"
        plan = FaultPlan(
            seed=self.seed,
            unavailable=chance.choice([0, 0.01, 0.05]),
            throttled=chance.choice([0, 0.02]),
            lost_answer=chance.choice([0, 0.05, 0.2]),
            cut_upload=chance.choice([0, 0.5]),
            late_listing_s=chance.choice([0, 0.2, 5.0]),
            disk_bytes=chance.choice([float("inf"), float("inf"), 2_000, 20_000]),
            most=chance.choice([1, 3, 10]),
            log=str(log),
        )
        self._end(self._start(plan=plan))
        if log.exists():
            self.outcome.counts.update(f"store: {kind}" for kind in set(log.read_text().split()))
            log.unlink()

    def two_drivers(self) -> None:
        first = self._start()
        time.sleep(self.random.uniform(0, 0.5 * self.subject.seconds))
        second = self._start(self.random.choice(["run1", "run2"]))
        if self.random.random() < 0.5:
            self._some_time()
            self.random.choice([first, second]).kill()
        self._end(first, second)

    def crash_of_a_tick(self) -> None:
        at, _ = self._point(points_of("schedule"))
        is_queued = at in {"trigger-created", "trigger-queued"}  # a person runs the same
        path = self.folder / "soak.yaml"
        document = {**self._document(slow=is_queued), "trigger": {"cron": "0 3 * * *"}}
        path.write_text(yaml.safe_dump(document))
        environment = {"VIDEOAR_LEASE_TTL_S": str(LEASE_TTL_S)}
        arguments = self.url, str(path), self.subject.registry
        self._end(start(tick, *arguments, [-60], **environment))
        first = [self._start(slow=True)] if is_queued else []
        time.sleep(self.subject.seconds if is_queued else 0)
        driver = start(tick, *arguments, [0], VIDEOAR_CRASH_AT=at, **environment)
        self._end(driver, *first)
        if driver.exitcode:
            self._hit(at)
        self._end(start(tick, *arguments, [1, 2], **environment))
        assert len(run_ids(self.observer.store)) == 1 + is_queued

    def crash_in_the_queue(self) -> None:
        first = self._start(slow=True)
        time.sleep(self.random.uniform(0, self.subject.seconds))
        point, _ = self._point(_QUEUE)
        second = self._start("run2", at=point, slow=True)
        self._end(first, second)
        if second.exitcode:
            self._hit(point)

    def _finish(self) -> None:
        """Resume every run that was left until each has succeeded."""
        for run_id in sorted({"run1", *run_ids(self.observer.store)}):
            for _ in range(_RESUMES):
                driver = self._start(run_id)
                driver.join(_TIMEOUT_S)
                if driver.exitcode == 0:
                    break
            assert driver.exitcode == 0, f"{run_id} ends with {driver.exitcode}"

    def _check(self) -> None:
        """Compare with the undisturbed run."""
        self.observer.look()
        store = self.observer.store
        for run_id in run_ids(store):
            run = load_run(store, run_id)
            assert run.status == "SUCCEEDED"
            assert run.outputs == self.subject.outputs
        for name in store.refs.names():
            assert len(store.refs.history(name)) == 1, "promoted twice"


def toy_subject(folder: Path) -> Subject:
    """Return the pipeline of toy stages: map, reduce, training, promotion."""
    videos = write_videos(folder / "videos", *(f"{c}.mp4" for c in "abc"), "dbad.mp4")
    document = toy_document(videos, model={"tells_start": False})
    own = ["mapping-a.mp4", "mapping-c.mp4", "picking", "counting-5"]
    points = [*own, *_RUNS, *points_of("stages.promote")]
    return undisturbed("toy", document, REGISTRY, folder, KINDS, points)


_SMALLER = (
    "inputs.videos=rendered://shapes?num_videos=6&seed=0",
    "stages.tokenizer.training.steps=4",
    "stages.tokenizer.training.image_steps=1",
    "stages.tokenizer.training.batch_clips=2",
    "stages.tokenizer.validations=1",
    "stages.tokenizer.validation_clips=1",
    "stages.model.training.phases=[{steps: 4, batch_size: 2}]",
)


def drawn_subject(folder: Path) -> Subject:
    """Return the chain of real stages on rendered clips: ingest, tokenizer, tokens, model."""
    (folder / "short").mkdir()
    path, *options = up_to_the_model(folder / "short")
    options += sets(*_SMALLER, base=())
    document = dict(load_pipeline(Path(path), options[1::2], BUILTIN).document)
    # without the checks of Great Expectations, which take longer than all the rest
    del document["stages"]["good"]
    for stage in document["stages"].values():
        stage["from"] = {p: s.replace("good", "clips") for p, s in stage["from"].items()}
    points = [*points_of("stages.ingest", "stages.tokenize"), *_RUNS]
    kinds = (*(kind for kind in KINDS if kind not in _ONCE), "kill of a child")
    return undisturbed("drawn", document, BUILTIN, folder, kinds, points)


def undisturbed(
    name: str,
    document: dict,
    registry: Registry,
    folder: Path,
    kinds: Sequence[str],
    points: Sequence[str],
) -> Subject:
    """Run it undisturbed."""
    url, modules = (folder / "calm").as_uri(), folder / "modules"
    child = start(drive_and_list, url, document, registry, str(modules))
    child.join()
    assert child.exitcode == 0
    outputs = load_run(open_store(url), "calm").outputs
    return Subject(name, document, registry, outputs, kinds, points, modules)


def drive_and_list(url: str, document: dict, registry: Registry, modules: str) -> None:
    """Drive the run `calm`, and write the names of all modules that it has imported."""
    spec = parse_pipeline(document, "soak.yaml", registry)
    Execution(spec, open_store(url), InlineEngine(), run_id="calm", registry=registry).run()
    Path(modules).write_text("\n".join(sorted(sys.modules)))


def measured(subject: Subject) -> Subject:
    """Return it with the seconds of an undisturbed run."""
    os.environ[_MODULES] = str(subject.modules)
    for _ in range(2):  # the first one starts the fork server
        with TemporaryDirectory() as folder:
            began = time.monotonic()
            url = (Path(folder) / "store").as_uri()
            start(drive, url, subject.document, subject.registry, "run1", None).join()
            seconds = time.monotonic() - began
    return replace(subject, seconds=seconds)
