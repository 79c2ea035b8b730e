"""Sends events of scheduled runs to webhooks and programs, at least once each.

An event has an id, the same in each attempt: who gets it twice can tell. What was delivered is
recorded, so that the next tick sends only the rest. Secrets are read from the environment when they
are used, and no record, log line or message has them.
"""

import hashlib
import hmac
import logging
import subprocess
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from http.client import HTTPException
from typing import Any

from videoar.core.errors import ConfigError
from videoar.core.ids import canonical_json, digest_json
from videoar.core.settings import child_environment, secret
from videoar.pipeline.trigger import Event, Hook
from videoar.records.run import Run
from videoar.schedule.records import Firing
from videoar.storage.layout import delivery_key
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_HTTP_S, _EXEC_S = 10.0, 60.0
_GIVE_UP_S = 24 * 3600.0
"""chosen: a hook that fails for a day is broken, and its events are stale."""
_EVENT_OF: dict[str, Event] = {"SUCCEEDED": "succeeded", "GATE_BLOCKED": "gate_blocked"}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Fails on a redirect: urllib would follow it with a GET, and the event would be lost."""

    def redirect_request(self, *_: object) -> None:
        """Return None: no other request."""


class HookSender:
    """Sends the events of one pipeline's scheduled runs.

    Args:
        store: where deliveries are recorded.
        hooks: of the pipeline.
    """

    def __init__(self, store: Store, hooks: Sequence[Hook]) -> None:
        self._store, self._hooks = store, hooks

    def send_end(
        self,
        firing: Firing,
        record: dict[str, Any],
        run: Run | None,
        error: str | None,
        now: datetime,
    ) -> bool:
        """Send how a run has ended; return whether all hooks got it, or were given up."""
        if not self._hooks:
            return True
        ending = _EVENT_OF.get(run.status, "failed") if run else "failed"
        promoted: list[Event] = ["promoted"] if run and self._promoted(run.run_id) else []
        if self.send(["started", ending, *promoted], firing, record, run, error):
            return True
        ended_at = run.started_at + run.seconds if run else record["at"]
        if now.timestamp() - ended_at < _GIVE_UP_S:
            return False
        logger.error("%s %s: gave up hooks that failed for a day", firing.pipeline, firing.key)
        return True

    def _promoted(self, run_id: str) -> list[str]:
        heads = ((name, self._store.refs.head_record(name)) for name in self._store.refs.names())
        return [name for name, head in heads if head and head.get("by_run") == run_id]

    def send(
        self,
        events: Sequence[Event],
        firing: Firing,
        record: dict[str, Any],
        run: Run | None,
        error: str | None = None,
    ) -> bool:
        """Send events to the hooks that have not got them; return whether all have them now."""
        results = []
        for event in events:
            message = {
                "id": f"{record['run_id']}-{event}",
                "event": event,
                "pipeline": firing.pipeline,
                "key": firing.key,
                "cause": record["cause"],
                "run_id": record["run_id"],
                "status": run.status if run and event != "started" else None,
                "error": error if event in {"failed", "gate_blocked"} else None,
                "refs": self._promoted(record["run_id"]) if event == "promoted" else [],
            }
            results += [self._send(hook, message) for hook in self._hooks if event in hook.events]
        return all(results)

    def _send(self, hook: Hook, message: dict[str, Any]) -> bool:
        name = digest_json(hook.model_dump(mode="json"))[:8]
        key = delivery_key(message["id"], name)
        if self._store.ledger.read(key) is not None:
            return True
        try:
            deliver(hook, message)
        except (ConfigError, OSError, HTTPException, subprocess.SubprocessError) as error:
            # their texts may have the address, which may be secret
            what = error if isinstance(error, ConfigError) else type(error).__name__
            logger.warning("hook %s: event %s not delivered: %s", name, message["id"], what)
            return False
        self._store.ledger.create(key, {"event": message["id"]})
        return True


def deliver(hook: Hook, message: dict[str, Any]) -> None:
    """Send one event to one hook.

    Raises:
        ConfigError: a secret is not set.
        OSError, HTTPException, SubprocessError: it was not accepted.
    """
    body = canonical_json(message).encode()
    if hook.exec is not None:
        secrets = {name.removeprefix("env:"): secret(name) for name in hook.secrets}
        subprocess.run(
            hook.exec, input=body, env=child_environment() | secrets, check=True, timeout=_EXEC_S,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return
    url = str(hook.url)
    url = secret(url) if url.startswith("env:") else url
    if not url.startswith(("http://", "https://")):
        raise ConfigError(str(hook.url), "is no http(s) address")
    headers = {"Content-Type": "application/json", "X-VideoAR-Event": message["id"]}
    if hook.secret is not None:
        digest = hmac.new(secret(hook.secret).encode(), body, hashlib.sha256).hexdigest()
        headers["X-VideoAR-Signature"] = f"sha256={digest}"
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=_HTTP_S):
        pass
