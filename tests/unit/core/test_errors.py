"""The error tree: one line per error, exit codes, and errors that come from other processes."""

import pickle

import pytest

from videoar.core import errors
from videoar.core.errors import (
    ConfigError,
    MediaError,
    VideoARError,
    did_you_mean,
    one_line,
)

TREE = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, VideoARError)
]


def example(error):
    return error("a.mp4", "CORRUPT", "is cut") if error is MediaError else error("a", "b", "c")


def test_error_is_one_line_with_its_hint_in_brackets():
    assert str(ConfigError("p.yaml", "unknown key", "did you mean x?")) == (
        "p.yaml: unknown key (did you mean x?)"
    )
    assert str(ConfigError("p.yaml", "unknown key")) == "p.yaml: unknown key"


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_error_survives_pickling(error):
    """Workers are other processes: what they raise reaches the driver as a pickle."""
    before = example(error)
    after = pickle.loads(pickle.dumps(before))
    assert (type(after), str(after), vars(after)) == (error, str(before), vars(before))


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_docstring_of_the_tree_has_the_exit_code_of_every_error(error):
    entry = next(
        line for line in errors.__doc__.splitlines() if f" {error.__name__} " in f"{line} "
    )
    words = entry.split(error.__name__)[1].split()
    codes = [int(word) for word in words if word.isdigit()]
    inherited = error.__base__.exit_code if error is not VideoARError else 1
    assert error.exit_code == (codes[0] if codes else inherited)
    assert error.retryable == ("retryable" in words)


def test_did_you_mean_offers_the_closest_name_or_all():
    assert did_you_mean("toknize", ["tokenize", "ingest"]) == "did you mean tokenize?"
    assert did_you_mean("x", ["b", "a"]) == "known: a, b"


def test_one_line_joins_lines_and_runs_of_spaces():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
