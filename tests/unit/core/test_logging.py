"""Log lines: JSON and text, context fields, levels."""

import json
import logging

import pytest

from videoar.core.logging import configure_logging, log_context

logger = logging.getLogger("videoar.test")


def test_json_line_has_the_fields_of_its_context(capsys):
    configure_logging("json", verbose=False)
    with log_context(run_id="r1"), log_context(stage="clips"):
        logger.info("started %d", 3)
    logger.info("outside")
    inside, outside = map(json.loads, capsys.readouterr().err.splitlines())
    assert inside.items() >= {"level": "info", "message": "started 3", "run_id": "r1"}.items()
    assert inside["stage"] == "clips"
    assert "stage" not in outside


def test_json_line_of_an_exception_has_its_traceback(capsys):
    configure_logging("json", verbose=False)
    try:
        int("boom")
    except ValueError:
        logger.exception("failed")
    line = json.loads(capsys.readouterr().err)
    assert line["exception"].endswith("int() with base 10: 'boom'")


def test_text_line_escapes_control_characters(capsys):
    configure_logging("text", verbose=False)
    with log_context(run_id="r1", stage="clips"):
        logger.warning("bad\x1b[31m\nname")
    assert capsys.readouterr().err == "warning r1/clips: bad\\x1b[31m\\nname\n"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"verbose": True}, ["debug", "info", "warning"]),
        ({"verbose": False}, ["info", "warning"]),
        ({"verbose": False, "quiet": True}, ["warning"]),
    ],
)
def test_options_select_the_levels_shown(capsys, options, shown):
    configure_logging("json", **options)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logger.log(level, "x")
    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == shown


def test_configured_twice_prints_each_line_once(capsys):
    for _ in range(2):
        configure_logging("json", verbose=False)
    logger.info("x")
    assert len(capsys.readouterr().err.splitlines()) == 1
