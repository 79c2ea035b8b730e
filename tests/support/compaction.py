"""Runs of `compact` alone, here or in a child process."""

from tests.support.child_process import preload
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.runner.execute import Execution
from videoar.storage.store import open_store

preload(__name__)


def compact(store, tokens, **options):
    stages = {"packed": {"stage": "compact", "from": {"tokens": "tokens"}, **options}}
    document = {"pipeline": "p", "inputs": {"tokens": f"snapshot://{tokens}"}, "stages": stages}
    made = Execution(parse_pipeline(document, "p.yaml"), store, InlineEngine()).run()
    return made.stage("packed"), store.snapshot(made.outputs["packed"])


def compact_at(store_url, tokens):
    """Open the store and compact, in a child process."""
    compact(open_store(store_url), tokens)
