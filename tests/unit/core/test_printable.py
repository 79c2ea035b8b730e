"""Text from outside is displayed with control characters escaped."""

import pytest

from videoar.core.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nerror: forged\r\tb", r"a\nerror: forged\r\tb"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("\u202egnp.mp4\u2066\u2028", r"\u202egnp.mp4\u2066\u2028"),
        (b"caf\xe9.mp4".decode(errors="surrogateescape"), r"caf\udce9.mp4"),
    ],
)
def test_printable_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "C:\\clips\\new.mp4",
        "\u732b\u3068\u72ac",
        "\u05e9\u05dc\u05d5\u05dd",
        "e\u0301 \U0001f408\u200d\u2b1b",
    ],
)
def test_printable_ordinary_unicode_is_unchanged(text: str) -> None:
    assert printable(text) == text


def test_printable_kept_characters_pass() -> None:
    assert printable("a: 1\n\tb: \x1b", keep="\n\t") == "a: 1\n\tb: \\x1b"
