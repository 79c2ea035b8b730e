"""Decide from a file's first bytes whether a decoder may see it, and as what.

Names lie and demuxers that guess can be led to open other files (an `.mp4` that holds an HLS
playlist or an ffconcat list). So the content decides, exactly one demuxer from a short list is
named to the decoder, and playlists, pictures and text never reach it.
Source: the behaviour table of FFmpeg 5.1 on such files; demuxer signatures from libavformat.
"""

import stat
from pathlib import Path

from videoar.core.errors import MediaError

_HEAD_BYTES = 4096
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<MPD", b"<smil", b"v=0\r\n", b"v=0\n")
_PICTURES = (
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"%PDF",
    b"PK\x03\x04",
)
CODECS = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4"})
CODECS |= {"h263", "flv1", "mjpeg", "theora", "wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v2"}
CODECS |= {"msmpeg4v3", "prores", "dnxhd", "ffv1"}


def require_file(path: Path) -> None:
    """Refuse what must not even be opened: devices, pipes (a read may hang for ever), nothing.

    Raises:
        MediaError: `IO_PERMANENT` (not a regular file) or `EMPTY`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise MediaError(path.name, "IO_PERMANENT", error.strerror or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(path.name, "IO_PERMANENT", "not a regular file")
    if status.st_size == 0:
        raise MediaError(path.name, "EMPTY", "0 bytes")


def detect_demuxer(path: Path) -> str:
    """Return the only demuxer that may open a file.

    Raises:
        MediaError: a code of `require_file` or `sniff`.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            return sniff(file.read(_HEAD_BYTES), path.name)
    except OSError as error:
        raise MediaError(path.name, "IO_PERMANENT", error.strerror or str(error)) from error


def sniff(head: bytes, name: str) -> str:
    """Return the demuxer of a file that begins with `head`.

    Raises:
        MediaError: `PLAYLIST`, `CONTAINER_DENIED` (pictures, terminal art, archives), `NOT_VIDEO`.
    """
    container = _container(head)
    if container:
        return container
    if any(mark in head[:512] for mark in _PLAYLISTS):
        raise MediaError(name, "PLAYLIST", "a list of other files, not a video")
    if head.startswith(_PICTURES) or b"\x1b[" in head[:512]:
        raise MediaError(name, "CONTAINER_DENIED", "a picture, archive or terminal text")
    raise MediaError(name, "NOT_VIDEO", "no known video container")


def _container(head: bytes) -> str | None:
    if head[4:8] in _BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return "avi"
    for mark, container in (
        (b"\x1aE\xdf\xa3", "matroska"),
        (b"FLV\x01", "flv"),
        (b"OggS", "ogg"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
        (b"\0\0\x01\xba", "mpeg"),
    ):
        if head.startswith(mark):
            return container
    return "mpegts" if _is_transport_stream(head) else None


def _is_transport_stream(head: bytes) -> bool:
    return any(
        len(head) > start + 2 * packet and set(head[start : start + 3 * packet : packet]) == {0x47}
        for start, packet in ((0, 188), (4, 192))
    )
