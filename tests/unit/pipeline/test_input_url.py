"""What an input may be is decided without touching anything outside."""

from pathlib import Path

import pytest

from videoar.pipeline.input_url import absolute_input, input_problem, named_input


@pytest.mark.parametrize(
    "url",
    ["/data/videos", "videos", "./~", "a b #2?", "file:///data/a%20b", "file://localhost/data",
     "s3://bucket", "s3://bucket/a@b", "rendered://shapes?num_videos=2&seed=0", "ref://champion",
     "snapshot://clips:0123456789abcdef", "/data/video@home", "C:/x", "Ref://a/b?optional=true",
     "snapshot://clips:0123456789abcdef?optional=true"],
)  # fmt: skip
def test_folders_and_known_urls_are_accepted(url: str):
    assert input_problem(url) is None


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("~/videos", "~ is not expanded here"),
        ("~", "~ is not expanded here"),
        ("~user/videos", "~ is not expanded here"),
        ("file:rel", "is not a file URL"),
        ("file:/rel", "is not a file URL"),
        ("file://rel/path", "names the host rel"),
        ("file://", "names no folder"),
        ("file:///d#x", "contains ? or #"),
        ("file:///d?x", "contains ? or #"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://[", "is not a URL"),
        ("s3://user:secret@bucket/x", "contains a user name or password"),
        ("https://user:secret@host/x", "contains a user name or password"),
        ("file://user@host/x", "contains a user name or password"),
        ("https://host/x", "unknown kind of input https://"),
        ("gs://bucket/x", "unknown kind of input gs://"),
        ("ref://", "names no ref"),
        ("ref://?optional=true", "names no ref"),
        ("ref://champion?optional=yes", "has another option than ?optional=true"),
        ("snapshot://a:b?x=1?optional=true", "has another option than ?optional=true"),
        ("ref://champion/tokens?x=1", "has another option than ?optional=true"),
        ("ref://champion/", "names no parent after a /"),
        ("ref://champion//clips", "names no parent after a /"),
        ("/a\0b", "contains control characters"),
        ("/a\nb", "contains control characters"),
        ("/a\udcff", "contains control characters or bytes that are not UTF-8"),
    ],
)
def test_other_urls_are_rejected_with_a_hint(url: str, what: str):
    problem = input_problem(url)
    assert problem is not None
    assert problem[0].startswith(what)
    assert problem[1]
    assert "secret" not in str(problem)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("ref://champion", ("ref", "champion", (), False)),
        ("REF://champion?optional=true", ("ref", "champion", (), True)),
        ("snapshot://a:b?optional=true", ("snapshot", "a:b", (), True)),
        ("ref://champion/tokens/clips", ("ref", "champion", ("tokens", "clips"), False)),
        ("s3://bucket?optional=true", None),
        ("ref", None),
    ],
)
def test_named_input_is_ref_or_snapshot_and_may_be_optional(url, named):
    assert named_input(url) == named


def test_relative_paths_become_absolute_and_urls_are_unchanged():
    assert absolute_input("a/../b #1", Path("/x")) == "/x/a/../b #1"
    assert absolute_input("/a", Path("/x")) == "/a"
    assert absolute_input("s3://a/b", Path("/x")) == "s3://a/b"
