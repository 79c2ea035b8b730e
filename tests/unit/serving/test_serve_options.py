"""Mistakes in the options of `videoar serve`, and a server beside another one."""

import pytest
from typer.testing import CliRunner

from tests.support.published_model import published
from videoar.cli.app import app
from videoar.core.errors import LeaseHeldError
from videoar.serving.serve import server_lease


@pytest.mark.slow
def test_command_beside_a_running_server_is_rejected_before_it_loads_a_model(store):
    store.refs.advance("champion", published(store).id, expect=None, evidence={})
    first = server_lease(store)
    first.acquire()
    first.keep(lambda error: None)
    options = ["--store", store.url, "--target", "inline", "serve", "--model", "champion"]
    done = CliRunner().invoke(app, options)
    first.release()
    assert isinstance(done.exception, LeaseHeldError)
    assert done.exception.exit_code == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--model", "nosuch"], "no such"),
        (["--model", "champion", "--model", "champion"], "is given twice"),
        (["--model", "champion", "--keys", "/nosuch"], "cannot be read"),
        (["--model", "champion", "--target", "ray://x"], "Ray Client"),
        (["--model", "champion", "--port", "0"], "port"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_checked_before_anything_starts(store, options, what):
    if "nosuch" not in options:
        store.refs.advance("champion", published(store).id, expect=None, evidence={})
    done = CliRunner().invoke(app, ["--store", store.url, "serve", *options])
    assert done.exit_code != 0
    assert what in str(done.exception) + done.output
    assert list(store.objects.list("serving/")) == []
