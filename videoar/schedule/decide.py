"""What a schedule has to run, as a pure function of its trigger, its state and the time."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from videoar.core.ids import digest_json
from videoar.pipeline.trigger import NewSources, Trigger

_HASH = 8


@dataclass(frozen=True)
class Due:
    """Something that a run has to be started for."""

    key: str
    """Names it: of two ticks that find the same thing due, one creates the record of this key."""
    cause: dict[str, Any]
    """What it is: `{window, missed}` or `{consumed, ...}`; kept in the record."""


@dataclass(frozen=True)
class NewData:
    """Sources that no firing has consumed yet."""

    items: int
    num_bytes: int
    first_seen: datetime
    last_change: datetime


@dataclass(frozen=True)
class State:
    """What the store knows about a schedule."""

    pipeline: str
    after: datetime
    """Windows up to here are settled."""
    firings: int = 0
    """How often new data has fired."""
    consumed: str | None = None
    """Snapshot that the last firing consumed."""
    current: str | None = None
    """Snapshot, or digest of the listing, of now; None: there is none."""
    new: NewData | None = None


@dataclass(frozen=True)
class Decision:
    """What is due, or why nothing is."""

    due: list[Due] = field(default_factory=list)
    reason: str = ""


def window_key(pipeline: str, window: datetime) -> str:
    """Return the key of a window; it sorts by time."""
    return f"{window:%Y%m%dt%H%M%Sz}-{_hash(pipeline, window.isoformat())}"


def data_key(pipeline: str, number: int, consumed: str | None) -> str:
    """Return the key of the firing that follows the one that has consumed a snapshot.

    By what was consumed before, not by what is new: two ticks between which another source arrives
    find the same key, and start one run.
    """
    return f"data-{number:06d}-{_hash(pipeline, number, consumed)}"


def _hash(*parts: str | int | None) -> str:
    return digest_json(list(parts))[:_HASH]


def due(trigger: Trigger, state: State, now: datetime) -> Decision:
    """Return what a schedule has to run now."""
    if trigger.cron is not None:
        return _due_windows(trigger, state, now)
    if state.current is None:
        return Decision(reason="there is no snapshot yet")
    if trigger.new_sources is None:
        if state.current == state.consumed:
            return Decision(reason=f"{state.current} has had its run")
    elif state.new is None:
        return Decision(reason="no new sources")
    elif reason := _waits(trigger.new_sources, state.new, now):
        return Decision(reason=reason)
    cause: dict[str, Any] = {"consumed": state.current}
    if state.new is not None:
        cause |= {"new_items": state.new.items, "new_bytes": state.new.num_bytes}
    return Decision([Due(data_key(state.pipeline, state.firings, state.consumed), cause)])


def _due_windows(trigger: Trigger, state: State, now: datetime) -> Decision:
    windows = list(trigger.windows(state.after, now))
    if not windows:
        return Decision(reason="no window is due")
    keep = trigger.max_catchup if trigger.missed == "all" else 1
    if trigger.missed == "skip" and (now - windows[-1]).total_seconds() > trigger.grace_s:
        return Decision(reason=f"{len(windows)} windows were missed")
    kept, num_missed = windows[-keep:], len(windows[:-keep])
    return Decision([
        Due(
            window_key(state.pipeline, window),
            {"window": window.isoformat(), "missed": 0 if i else num_missed},
        )
        for i, window in enumerate(kept)
    ])


def _waits(rule: NewSources, new: NewData, now: datetime) -> str:
    """Return why new sources do not start a run yet; empty if they do."""
    waited_s = (now - new.first_seen).total_seconds()
    if rule.max_wait_s is not None and waited_s >= rule.max_wait_s:
        return ""
    min_items = 1 if rule.min_items is None and rule.min_bytes is None else rule.min_items
    has_enough = (min_items is not None and new.items >= min_items) or (
        rule.min_bytes is not None and new.num_bytes >= rule.min_bytes
    )
    if not has_enough:
        return f"{new.items} new sources of {new.num_bytes} bytes are too few"
    if (now - new.last_change).total_seconds() < rule.debounce_s:
        return f"{new.items} new sources, and the listing still changes"
    return ""
