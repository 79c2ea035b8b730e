"""Keep secrets out of what is printed, logged or stored: errors, log lines, pipeline files."""

import os
import re

# `Path` makes one slash of two
_USERINFO = re.compile(r"(?<=\w)(://?)[^/\s]+@")
# `MAX_TOKENS` and `HF_TOKEN_PATH` are no secrets
_NAMES = re.compile(r"(^|_)(SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY)(_?(KEY|ACCESS_KEY))?$", re.I)
_MIN_LENGTH = 8
"""chosen: `TOKEN=none` must not blank out a word of every message."""


def redact(text: str) -> str:
    """Return a text with `***` for users and passwords in URLs, and for secrets of the environment.

    A variable is a secret if its name ends like AWS_SECRET_ACCESS_KEY, HF_TOKEN or X_PASSWORD.

    Example:
        >>> redact("no answer from https://me:pass@host/x")
        'no answer from https://***@host/x'
    """
    text = _USERINFO.sub(r"\1***@", text)
    for name, value in os.environ.items():  # noqa: TID251 - whatever is set, no setting of ours
        if len(value) >= _MIN_LENGTH and value in text and _NAMES.search(name):
            text = text.replace(value, "***")
    return text
