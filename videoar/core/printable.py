r"""Escapes what a terminal or browser interprets in text from outside: names, captions, errors.

A file name can hold any byte but `/` and NUL. Printed as it is, `\x1b[2J` clears the terminal, a
newline starts a forged log line, and U+202E displays `exe.4pm` as `mp4.exe`.
"""

import re

# C0 and C1 controls (ECMA-48), bidirectional embeddings, overrides and isolates (CVE-2021-42574),
# the line separators U+2028 and U+2029, and lone surrogates: Python decodes bytes of a file name
# that are not UTF-8 to U+DC80..U+DCFF (PEP 383), and no stream can encode those.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text with control characters as Python escapes; other Unicode stays as it is.

    Backslashes are not doubled: Windows paths stay readable, and the result is for display only.

    Args:
        text: anything from outside.
        keep: control characters that pass, for documents with lines: `"\n"` or `"\n\t"`.

    Example:
        >>> printable("a\x1b[31m\nb")
        'a\\x1b[31m\\nb'
    """

    def escape(match: re.Match[str]) -> str:
        char = match.group()
        if char in keep:
            return char
        code = ord(char)
        return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")

    return _UNSAFE.sub(escape, text)
