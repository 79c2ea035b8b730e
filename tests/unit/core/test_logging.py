"""Log lines on a terminal."""

import logging

from videoar.core.logging import configure_logging, log_context


def test_control_characters_in_text_lines_are_escaped_and_tracebacks_keep_their_lines(capsys):
    configure_logging("text", verbose=False)
    logger = logging.getLogger("videoar.test")
    with log_context(stage="clips"):
        logger.info("read %s", "a\x1b[2J\nb.mp4")
        error = ValueError("\x1b[31m")
        logger.error("failed", exc_info=error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == r"info    clips: read a\x1b[2J\nb.mp4"
    assert lines[1:3] == ["error   clips: failed", r"ValueError: \x1b[31m"]
