"""Decide from the first bytes of a file whether a decoder may open it, and with which demuxer.

File names cannot be trusted, and FFmpeg's own probing can be led to open other files: an `.mp4` may
hold an HLS playlist or an ffconcat list with paths or URLs of the attacker's choice. So the content
decides, exactly one demuxer from a short list is passed to FFmpeg, and playlists and text are never
opened, images only where they are asked for.
Source: behaviour of FFmpeg 5.1 on such files (`tests/support/hostile.py`); signatures of
libavformat.
"""

import errno
import stat
from pathlib import Path

from videoar.core.errors import MediaError, StorageError, TransientStorageError, VideoARError

_HEAD_BYTES = 4096
# First boxes of MP4 and QuickTime files. The brand in `ftyp` is not checked: old QuickTime files
# have none, and the demuxer is the same.
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
# HLS, ffconcat, PLS, DASH, SMIL, SDP: all of them name other files or hosts
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<MPD", b"<smil", b"v=0\r\n", b"v=0\n")
_IMAGES = (b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"%PDF", b"PK\x03\x04")
CODECS = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4"})
CODECS |= {"h263", "flv1", "mjpeg", "theora", "wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v2"}
CODECS |= {"msmpeg4v3", "prores", "dnxhd", "ffv1"}
"""Codecs that may be decoded: those that real corpora use. Rare decoders are little tested."""
IMAGE_CODECS = frozenset({"png", "mjpeg"})
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}
_DENIED = {errno.EACCES, errno.EPERM}
_IMAGE_DEMUXERS = {b"\x89PNG\r\n\x1a\n": "png_pipe", b"\xff\xd8\xff": "jpeg_pipe"}


def require_file(path: Path) -> None:
    """Check that a path is a regular file with content.

    Devices and pipes must not even be opened: a read from a pipe may block forever.

    Raises:
        MediaError: `IO_PERMANENT` (does not exist, or is no regular file) or `EMPTY`.
        StorageError: see `read_error`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise read_error(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(path.name, "IO_PERMANENT", "is not a regular file")
    if status.st_size == 0:
        raise MediaError(path.name, "EMPTY", "is empty")


def read_error(path: Path, error: OSError) -> VideoARError:
    """Return the error for a file that cannot be read.

    Only a file that is not there is rejected (`IO_PERMANENT`). Missing permission, a full disk or a
    drive that fails say nothing about the video: they are errors of the machine.
    """
    what = error.strerror or str(error)
    if error.errno in _OF_THE_FILE:
        return MediaError(path.name, "IO_PERMANENT", what)
    if error.errno in _DENIED:
        return StorageError(path.name, what, "give this user access, or remove it from the input")
    return TransientStorageError(path.name, what, "check the drive and its free space")


def require_readable(path: Path) -> None:
    """Read a file to its end: FFmpeg names damaged data and a failing drive alike.

    Raises:
        VideoARError: see `read_error`.
    """
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    except OSError as error:
        raise read_error(path, error) from error


def detect_demuxer(path: Path, *, allow_images: bool = False) -> str:
    """Return the only demuxer that may open a file.

    Args:
        path: the file.
        allow_images: PNG and JPEG may be opened, too.

    Raises:
        MediaError: with a code of `require_file` or `sniff`.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise read_error(path, error) from error
    images = _IMAGE_DEMUXERS.items() if allow_images else ()
    is_image = (demuxer for signature, demuxer in images if head.startswith(signature))
    return next(is_image, None) or sniff(head, path.name)


def sniff(head: bytes, name: str) -> str:
    """Return the demuxer for a file that begins with `head`.

    Raises:
        MediaError: `PLAYLIST`, `CONTAINER_DENIED` (images, archives, terminal text), `NOT_VIDEO`.
    """
    container = _container(head)
    if container:
        return container
    # anywhere in the head: a byte order mark or an XML comment may come first
    if any(mark in head[:512] for mark in _PLAYLISTS):
        raise MediaError(name, "PLAYLIST", "is a playlist of other files, not a video")
    # escape sequences: FFmpeg's `tty` demuxer renders terminal text as a video
    if head.startswith(_IMAGES) or b"\x1b[" in head[:512]:
        raise MediaError(name, "CONTAINER_DENIED", "is an image, archive or terminal text")
    raise MediaError(name, "NOT_VIDEO", "is in no known video container")


def _container(head: bytes) -> str | None:
    if head[4:8] in _BOXES:  # 4 bytes of length come before the type of a box
        return "mov"
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return "avi"
    for mark, container in (
        (b"\x1aE\xdf\xa3", "matroska"),  # EBML; WebM too
        (b"FLV\x01", "flv"),
        (b"OggS", "ogg"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),  # GUID of the ASF header object
        (b"\0\0\x01\xba", "mpeg"),  # pack header of a program stream
    ):
        if head.startswith(mark):
            return container
    return "mpegts" if _is_transport_stream(head) else None


def _is_transport_stream(head: bytes) -> bool:
    """Return whether three packets in a row begin with the sync byte 0x47.

    Packets have 188 bytes, or 192 with a time code of 4 bytes in front (M2TS of cameras).
    """
    return any(
        len(head) > start + 2 * packet and set(head[start : start + 3 * packet : packet]) == {0x47}
        for start, packet in ((0, 188), (4, 192))
    )
