"""`python -m tests.checks.soak [TOY [DRAWN [MEDIA [FIRST]]]]`: random schedules of faults.

Plays TOY schedules of toy stages, DRAWN of the drawn chain and MEDIA of ingest, three at a time,
from seed FIRST; prints how often each fault was injected, and the seeds of those that failed.
"""

import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.support.soak import (
    Outcome,
    Schedule,
    Subject,
    drawn_subject,
    measured,
    points_of,
    toy_subject,
)
from tests.support.soak_media import MediaSchedule, media_subject

_PROCESSES = 3  # they wait often: for leases to end, and between two attempts


def play(subject: Subject, seed: int) -> Outcome | str:
    """Play one schedule; return what happened, or the error."""
    with tempfile.TemporaryDirectory(prefix="videoar-soak-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "temp").mkdir()
        try:
            kind = MediaSchedule if subject.name == "media" else Schedule
            return kind(subject, seed, Path(folder)).play()
        except Exception:  # noqa: BLE001 - the others are played all the same
            return traceback.format_exc()


def soak(make: Callable[[Path], Subject], seeds: range) -> Iterator[str]:
    """Play the schedules of one pipeline; yield an error per failed one, print the counts."""
    began, total = time.monotonic(), Outcome()
    with (
        tempfile.TemporaryDirectory(prefix="videoar-soak-") as folder,
        # not forked: each process has a fork server of its own
        ProcessPoolExecutor(_PROCESSES, get_context("spawn")) as pool,
    ):
        subject = pool.submit(measured, make(Path(folder))).result()
        played = pool.map(play, [subject] * len(seeds), seeds)
        for number, (seed, outcome) in enumerate(zip(seeds, played, strict=True)):
            if number % 10 == 9:
                print(f"{number + 1} schedules, {time.monotonic() - began:.0f} s", flush=True)
            if isinstance(outcome, str):
                yield f"{subject.name} {seed}: {outcome}"
            else:
                total.add(outcome)
    print(
        f"{subject.name}: {len(seeds)} schedules, seeds {seeds.start} to {seeds.stop - 1}, "
        f"{time.monotonic() - began:.0f} s; a run takes {subject.seconds:.1f} s undisturbed; "
        f"{total.looks} looks at a store that is written"
    )
    for name, count in sorted(total.counts.items()):
        print(f"  {count:6} {name}")
    reached = {name.removeprefix("point: ") for name in total.counts}
    wanted = [*subject.points, *(points_of("schedule") if subject.name == "toy" else ())]
    missed = [point for point in wanted if point not in reached]
    if missed and len(seeds) >= len(subject.kinds) * len(wanted):
        yield f"{subject.name}: crash points never reached: {', '.join(missed)}"


def main(toy: int = 450, drawn: int = 50, media: int = 200, first: int = 0) -> int:
    """Play all of them; return the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failures = 0
    parts = ((toy_subject, toy), (drawn_subject, drawn), (media_subject, media))
    for make, count in parts:
        for problem in soak(make, range(first, first + count)) if count else ():
            failures += 1
            print(problem, file=sys.stderr, flush=True)
    print(f"{failures} failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
