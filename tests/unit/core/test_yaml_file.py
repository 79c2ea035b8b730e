"""YAML that people write becomes JSON values, or one line with file, line and what to do."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from videoar.core.errors import ConfigError
from videoar.core.yaml_file import MAX_BYTES, parse_mapping, parse_value, read_mapping

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{previous}'] * 9)}]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def parse(text: str):
    return parse_mapping(text.encode(), "x.yaml", "start with a key")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: true\nb: null\nc:\nd: ~", {"a": True, "b": None, "c": None, "d": None}),
        ("a: [1, -2, +3, 0]", {"a": [1, -2, 3, 0]}),
        ("a: [1.5, .5, 1e-4, 3.0e-3, 2.]", {"a": [1.5, 0.5, 1e-4, 3e-3, 2.0]}),
        ("a: 'yes'\nb: \"007\"\nc: '2026-01-31'", {"a": "yes", "b": "007", "c": "2026-01-31"}),
        ("a: /x/my vids#2 # two", {"a": "/x/my vids#2"}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
        ("a: &x {b: [1]}\nc: *x", {"a": {"b": [1]}, "c": {"b": [1]}}),
        ("\ufeffa: 1", {"a": 1}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        ("---\na: 1\n...\n", {"a": 1}),
        ("'1': a\n\"<<\": b", {"1": "a", "<<": "b"}),
        ("a: rendered://shapes?num_videos=2&seed=0", {"a": "rendered://shapes?num_videos=2&seed=0"}),
    ],
)  # fmt: skip
def test_json_data_is_read(text: str, value: object):
    assert parse(text) == value


def test_alias_expansions_are_independent_copies():
    document = parse("a: &x {b: [1]}\nc: *x")
    document["a"]["b"].append(2)
    assert document["c"] == {"b": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2026-01-31", "x.yaml:2: 2026-01-31 is a date in YAML 1.1"),
        ("a: 2026-01-31T10:00:00Z", "x.yaml:1: 2026-01-31T10:00:00Z is a date"),
        ("b: {}\na:\n  <<: {c: 1}", "x.yaml:3: << merges mappings"),
        ("a: .inf", "x.yaml:1: .inf is not a finite number"),
        ("a: [1,\n -.INF]", "x.yaml:2: -.INF is not a finite number"),
        ("a: .nan", "x.yaml:1: .nan is not a finite number"),
        ("a: 1e999", "x.yaml:1: 1e999 is not a finite number"),
        ("a: yes", "x.yaml:1: yes is a boolean in YAML 1.1, text in YAML 1.2 (write true"),
        ("on: 1", "x.yaml:1: on is a boolean"),
        ("a: 007", "x.yaml:1: 007 is not a plain decimal number"),
        ("a: 08", "x.yaml:1: 08 is not a plain decimal number"),
        ("a: 0x1F", "x.yaml:1: 0x1F is not a plain decimal"),
        ("a: 0o17", "x.yaml:1: 0o17 is not a plain decimal"),
        ("a: 1_000", "x.yaml:1: 1_000 is not a plain decimal"),
        ("a: 1:30", "x.yaml:1: 1:30 is not a plain decimal"),
        ("a: " + "9" * 5000, "x.yaml:1: 999"),
        ("a: 18446744073709551616", "does not fit in 64 bits"),
        ("1: a", "x.yaml:1: key 1 is not text (put it in quotes)"),
        ("null: a", "x.yaml:1: key null is not text"),
        ("true: a", "x.yaml:1: key true is not text"),
        ("? [a]\n: b", "x.yaml:1: a key is a collection"),
        ("{a: 1}: b", "x.yaml:1: a key is a collection"),
        ("a: 1\nb: 2\na: 3", "x.yaml:3: key a given twice"),
        ("a: {b: 1, b: 2}", "x.yaml:1: key b given twice"),
        ("a: {b: 1, 'b': 2}", "x.yaml:1: key b given twice"),
        ("a: !!binary aGVsbG8=", "x.yaml:1: tag tag:yaml.org,2002:binary is not supported"),
        ("a: !!set {x, y}", "tag tag:yaml.org,2002:set is not supported"),
        ("a: !!python/object:os.system x", "is not supported"),
        ("a: !mine 1", "tag !mine is not supported"),
        ("a: &x [*x]", "x.yaml:1: alias *x has no anchor before it"),
        ("a: *x", "x.yaml:1: alias *x has no anchor before it"),
        ("a: 1\n---\nb: 2", "x.yaml:2: a second document starts (keep one per file)"),
        ("", "x.yaml: is empty (start with a key)"),
        ("# only a comment\n", "x.yaml: is empty"),
        ("- a", "x.yaml: not a mapping (start with a key)"),
        ("just text", "x.yaml: not a mapping"),
        ("a: 1\n\tb: 2", "x.yaml:2: not YAML: "),
        ("a:\n\t- b", "(indent with spaces)"),
        ("a: [", "x.yaml:1: not YAML: "),
        ("a: 1\nb: x\0y", r"x.yaml:2: character \x00 is not allowed in YAML (remove it)"),
        ('a: "\\ud800"', "x.yaml:1: \\ud800 contains a lone surrogate"),
        ('a: "\\U00110000"', "x.yaml: not YAML: "),
        ('a: "\\UFFFFFFFF"', "x.yaml: not YAML: "),
        ("%YAML 1." + "1" * 5000 + "\n---\na: 1", "x.yaml: not YAML: "),
        (BOMB, ": has more than 50,000 values"),
        ("a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 1000 + "]", ":2: has more"),
        ("a: &a {" + "x" * 100_000 + "}\nb: [" + "*a, " * 1000 + "]", "has more than"),
        ("a: " + "[" * 3000 + "]" * 3000, "x.yaml:1: is nested more than 64 levels deep"),
        ("a: " + "{a: " * 3000, "nested more than 64 levels deep"),
        ("\n".join(" " * i + "a:" for i in range(500)), "nested more than 64 levels deep"),
        ("a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40, "64 levels deep"),
        ("a: " + "x" * MAX_BYTES, "x.yaml: is larger than 256 KiB"),
    ],
)  # fmt: skip
def test_anything_else_is_one_clear_line(text: str, message: str):
    begin = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        parse(text)
    line = str(caught.value)
    assert message in line
    assert "\n" not in line
    assert len(line) < 250
    assert time.monotonic() - begin < 3


def test_bytes_that_are_no_utf8_name_their_line():
    with pytest.raises(ConfigError, match=r"^x\.yaml:2: not UTF-8 text"):
        parse_mapping(b"a: 1\nb: \xff", "x.yaml", "")
    with pytest.raises(ConfigError, match="not UTF-8"):
        parse_mapping("a: 1".encode("utf-16"), "x.yaml", "")


def test_paths_that_are_no_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_mapping(tmp_path, "")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_mapping(tmp_path / "missing.yaml", "")
    with pytest.raises(ConfigError, match="cannot be read: embedded null"):
        read_mapping(Path("a\0b"), "")
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        read_mapping(Path("/dev/zero"), "")


def test_a_file_of_100_mb_is_rejected_unread(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.touch()
    os.truncate(path, 100 << 20)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        read_mapping(path, "")
    assert time.monotonic() - begin < 0.5


@pytest.mark.slow
def test_the_largest_file_is_parsed_in_seconds():
    line = "- {metric: rendered/colour_acc, min: 0.4}\n"
    text = "a:\n" + line * ((MAX_BYTES - 10) // len(line))
    begin = time.monotonic()
    assert len(parse(text)["a"]) > 6000
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), (" 3 ", 3), ("[1, 2]", [1, 2]), ("{a: {b: x}}", {"a": {"b": "x"}}), ("null", None),
     ("'a # b'", "a # b"), ("a#b", "a#b"), ("", None)],
)  # fmt: skip
def test_one_value_is_parsed(text: str, value: object):
    assert parse_value(text, "--set a.b") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/x/my vids #2", "/x/my vids #2 has #2 after the value"),
        ("3 # three", "3 # three has # three after the value"),
        ("{a: 1} x", "not YAML"),
        ("a: 1", "is not a single value (write {key: value}"),
        ("- 1", "is not a single value"),
        ("{a: 1, a: 2}", "key a given twice"),
        ("1\n---\n2", "second document"),
        ("*x", "alias"),
        ("9" * (MAX_BYTES + 1), "longer than"),
    ],
)
def test_more_than_one_value_is_rejected(text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        parse_value(text, "--set a.b")
    assert message in str(caught.value)
    assert str(caught.value).startswith("--set a.b: ")


def is_json(value: object, keys: type = str) -> bool:
    if isinstance(value, dict):
        return all(type(k) is keys and is_json(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(is_json, value))
    return value is None or type(value) in {str, int, float, bool}


pieces = st.sampled_from(
    [*"abc01:-?[]{},#&*!|>'\"%@` \n\t\r\0\\.~=<_+", "a: ", "\n  ", "- ", "? ", "&a ", "*a", "<<: ",
     "!!", "!!int ", "---\n", "...\n", "%YAML ", "%TAG ! ", "0x", "1e9", ".inf", "yes", "null",
     "2026-01-31", "\\ud800", "\\U0011", "\ufeff", "\x85", "\u2028", "{a: ", "[[", "|2\n", "''"]
)  # fmt: skip


@settings(max_examples=200, deadline=2000)
@given(st.one_of(st.text(), st.lists(pieces, max_size=40).map("".join)))
@example("a: |1000000000000\n x")
@example("%TAG ! %ff\n---\na: 1")
@example("a: 'x\n---\n'")
def test_any_text_is_json_data_or_a_config_error(text: str):
    content = text.encode()
    try:
        document = parse_mapping(content, "x.yaml", "start with a key")
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - any text may be good
        return
    assert is_json(document)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert parse(json.dumps(document)) == document
