"""Detection by content: which demuxer opens a file, and what is never opened."""

import pytest

from videoar.core.errors import MediaError
from videoar.media.probe import detect_demuxer, sniff


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"#EXTM3U\n#EXT-X-STREAM-INF\nfile:///etc/passwd", "PLAYLIST"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "PLAYLIST"),
        (b"\x89PNG\r\n\x1a\n", "CONTAINER_DENIED"),
        (b"GIF89a", "CONTAINER_DENIED"),
        (b"\x1b[31mred\x1b[0m", "CONTAINER_DENIED"),
        (b"<html></html>", "NOT_VIDEO"),
        (bytes(64), "NOT_VIDEO"),
    ],
)
def test_files_that_are_no_video_are_rejected_by_content(head, code):
    with pytest.raises(MediaError) as error:
        sniff(head, "a.mp4")
    assert error.value.code == code


def test_containers_are_detected_by_content(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\0\0\0\x18ftypisom")
    assert detect_demuxer(tmp_path / "a.txt") == "mov"
    assert sniff(b"\x1aE\xdf\xa3", "") == "matroska"
    assert sniff(b"RIFF\0\0\0\0AVI LIST", "") == "avi"
    assert sniff((b"G" + bytes(187)) * 3, "") == "mpegts"
