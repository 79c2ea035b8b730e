"""When a pipeline runs by itself: the keys `trigger`, `concurrency` and `hooks` of its file.

An example, with what each key does, is in `docs/scheduling.md`.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, field_validator, model_validator

from videoar.core.types import Frozen

Event: TypeAlias = Literal["started", "succeeded", "failed", "gate_blocked", "promoted"]
Concurrency: TypeAlias = Literal["forbid", "queue", "replace", "allow"]
Missed: TypeAlias = Literal["latest", "all", "skip"]
_KINDS = ("cron", "new_sources", "new_snapshot")


def _check_secret(value: str) -> str:
    if not re.fullmatch(r"env:\w+", value):  # not repeated: it may be the secret itself
        raise ValueError("must be env:NAME, the name of an environment variable")
    return value


SecretName: TypeAlias = Annotated[str, AfterValidator(_check_secret)]


class NewSources(Frozen):
    """Runs when a listed input has new or changed sources, compared with the last such run."""

    input: str
    """Name of an input that is a folder or bucket."""
    min_items: int | None = Field(default=None, ge=1)
    """New sources that start a run. Without this and `min_bytes`, 1."""
    min_bytes: int | None = Field(default=None, ge=1)
    """Bytes of new sources that start a run, whichever is reached first."""
    debounce_s: float = Field(default=0.0, ge=0)
    """Time without a change of the listing before a run starts."""
    max_wait_s: float | None = Field(default=None, gt=0)
    """Time after which any new source starts a run, however few there are; null: no limit."""


class NewSnapshot(Frozen):
    """Runs when a dataset has another newest snapshot, or a ref another target."""

    dataset: str | None = None
    """Name of the dataset."""
    ref: str | None = None
    """Name of the ref."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.dataset is None) == (self.ref is None):
            raise ValueError("needs either dataset or ref")
        return self


class Trigger(Frozen):
    """What starts a run: the windows of a cron expression, or new data."""

    cron: str | None = None
    """Five fields, as cron of Debian reads them; each time is one window."""
    time_zone: str = "UTC"
    """Of the cron expression, such as Europe/Berlin."""
    missed: Missed = "latest"
    """Windows that nobody ticked for: run the latest, all of them, or only one that is not older
    than `grace_s`."""
    max_catchup: int = Field(default=10, ge=1, le=1_000)
    """With `missed: all`, so many of the latest windows at most."""
    grace_s: float = Field(default=900.0, gt=0)
    """With `missed: skip`, the age up to which a window still runs."""
    new_sources: NewSources | None = None
    """New data of an input, instead of `cron`."""
    new_snapshot: NewSnapshot | None = None
    """A new snapshot, instead of `cron`."""

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, value: str | None) -> str | None:
        if value is not None:
            if len(value.split()) != 5:
                raise ValueError("a cron expression has five fields, such as 0 3 * * *")
            try:
                # 30 February is found by looking for the first window
                next(CronSim(value, datetime(2026, 1, 1, tzinfo=UTC)))
            except (CronSimError, StopIteration) as error:
                reason = str(error).lower() or "never due"
                raise ValueError(f"no cron expression: {reason} (e.g. 0 3 * * *)") from error
        return value

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            hint = "a name of the tz database, such as Europe/Berlin"
            raise ValueError(f"no such time zone ({hint})") from error
        return value

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in _KINDS) != 1:
            raise ValueError(f"needs exactly one of {', '.join(_KINDS)}")
        return self

    def windows(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the windows of the cron expression in (after, until], in UTC, each once.

        At a change of the clocks a fixed time (`30 2 * * *`) that is skipped runs right after the
        gap, and one that comes twice runs at the first; `*` and `*/n` follow the elapsed time.
        """
        last = after
        for local in CronSim(self.cron or "", after.astimezone(ZoneInfo(self.time_zone))):
            window = local.astimezone(UTC)
            if window > until:
                return
            # a time in the gap is moved to its end, where the next one may be, too; and started in
            # the second of two equal hours, cronsim returns times of the first
            if window > last:
                last = window
                yield window


class Hook(Frozen):
    """Whom to tell about a scheduled run; see `docs/scheduling.md`."""

    events: Annotated[tuple[Event, ...], Field(min_length=1)]
    """Events that are sent."""
    url: str | None = None
    """Address that gets a POST with the event as JSON; `env:NAME` where the address is secret."""
    secret: SecretName | None = None
    """`env:NAME` of the key of its signature, HMAC-SHA256 in the header X-VideoAR-Signature."""
    exec: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Program and arguments, instead of `url`; gets the event as JSON on standard input."""
    secrets: tuple[SecretName, ...] = ()
    """`env:NAME` of variables that the program gets; it gets no other secret."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/@\s]+(/\S*)?|env:\w+", value):
            raise ValueError("must be http(s)://HOST/PATH without a password, or env:NAME")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.url is None) == (self.exec is None):
            raise ValueError("needs either url or exec")
        return self


class Schedule(Frozen):
    """The keys of a pipeline file beside inputs and stages that say when it runs."""

    trigger: Trigger | None = None
    """What starts a run: `videoar schedule tick` looks."""
    concurrency: Concurrency = "forbid"
    """What happens to a window that comes while a scheduled run of the pipeline is in progress:
    forbid skips it, queue runs it afterwards, replace cancels the run, allow runs both."""
    hooks: tuple[Hook, ...] = ()
    """Whom to tell about scheduled runs."""
