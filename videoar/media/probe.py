"""Decide from the first bytes of a file whether a decoder may open it, and with which demuxer.

File names cannot be trusted, and FFmpeg's own probing can be led to open other files: an `.mp4` may
hold an HLS playlist or an ffconcat list with paths or URLs of the attacker's choice. So the content
decides, exactly one demuxer from a short list is passed to FFmpeg, and playlists and text are never
opened, images only where they are asked for.
Source: behaviour of FFmpeg 5.1 on such files (`tests/support/hostile.py`); signatures of
libavformat.
"""

import errno
import re
import stat
from pathlib import Path

from videoar.core.errors import DiskError, MediaError, StorageError, VideoARError

_HEAD_BYTES = 1 << 16  # of the start, in which a container that begins with junk is looked for
# First boxes of MP4 and QuickTime files. The brand in `ftyp` is not checked: old QuickTime files
# have none, and the demuxer is the same.
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid"}
_BOXES |= {b"styp", b"sidx", b"moof", b"emsg", b"prft"}  # of fragments
# Others hold start codes, too: as raw streams they would have false times, and sound in pictures
_UNREAD = {
    b"nut/multimedia": "NUT",
    b".RMF": "RealMedia",
    b"DHAV": "DAV",
    b"IMKH": "Hikvision",
    b"\0\0\0\0\x01\xbc": "GXF",
    b"\xb7\xd8\0\x20\x37\x49\xda\x11": "WTV",
    b"NSV": "NSV",
    b"NuppelVideo": "NUV",
    b"MythTVVideo": "NUV",
    b"TiVo": "TiVo",
    b"\xf5\x46\x7a\xbd": "TiVo",
    **dict.fromkeys((b"FWS", b"CWS", b"ZWS"), "Flash"),
    **dict.fromkeys((b"BIK", b"KB2"), "Bink"),
}
# HLS, ffconcat, PLS, DASH, SMIL, SDP: all of them name other files or hosts
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<MPD", b"<smil", b"v=0\r\n", b"v=0\n")
_IMAGES = (b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"%PDF", b"PK\x03\x04")
# key of a partition pack: up to 64 KiB of anything may come before it
_MXF = re.compile(re.escape(bytes.fromhex("060e2b34020501010d01020101")))
# five packets in a row, or a pack header with the fixed bits of its clock in MPEG-2 or MPEG-1
_SYNC = re.compile(rb"(?s)(?=(?:G.{187}){5}|(?:G.{191}){5}|(?:G.{203}){5})")
_PACK = re.compile(rb"\0\0\x01\xba[\x21-\x2f\x44-\x7f]")
CODECS = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4"})
CODECS |= {"h263", "flv1", "mjpeg", "theora", "wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v2"}
CODECS |= {"msmpeg4v3", "prores", "dnxhd", "ffv1", "dvvideo", "cfhd", "rawvideo", "qtrle"}
CODECS |= {"huffyuv", "ffvhuff", "utvideo", "png", "v210", "v410", "r210"}
"""Codecs that may be decoded: those that real corpora use. Rare decoders are little tested."""
IMAGE_CODECS = frozenset({"png", "mjpeg"})
ANIMATION_CODECS = frozenset({"gif"})
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
    return DiskError(path.name, what, "check the drive and its free space")


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


def detect_demuxer(
    path: Path, *, allow_images: bool = False, allow_animations: bool = False
) -> str:
    """Return the only demuxer that may open a file.

    Args:
        path: the file.
        allow_images: PNG and JPEG may be opened, too.
        allow_animations: GIF may be opened, too.

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
    if allow_animations and head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return next(is_image, None) or sniff(head, path.name)


def why_unreadable(path: Path) -> str | None:
    """Return why FFmpeg cannot open an MP4 or QuickTime file, if a part of it is missing.

    Its index (`moov`) is often at the end, where nothing is if a recording or a copy was ended.
    """
    found: set[bytes] = set()
    kind, size = b"", path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            found.add(kind)
            if length == 1:  # the length is a number of 64 bits behind the type
                length = int.from_bytes(head[8:], "big")
            end = at + length if length else size  # 0: to the end of the file
            if end < at + 8 or end > size:
                break
            at = end
    if b"moof" in found and b"moov" not in found:
        return "is a fragment without the start of its film (box moov): join it to that"
    if b"mdat" in found and b"moov" not in found:
        return "has pictures but no index of them (box moov): its recording or copy was not ended"
    return f"ends within its box {kind.decode('latin-1')}" if at < size else None


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
    if head.startswith(_IMAGES) or head[8:12] == b"WEBP" or b"\x1b[" in head[:512]:
        raise MediaError(name, "CONTAINER_DENIED", "is an image, archive or terminal text")
    container = next((kind for mark, kind in _UNREAD.items() if head.startswith(mark)), None)
    if container:
        raise MediaError(name, "CONTAINER_DENIED", f"is in the container {container}")
    container = _behind_junk(head)
    if container:
        return container
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
        (b"DKIF\0\0", "ivf"),
        (b"YUV4MPEG2 ", "yuv4mpegpipe"),
        (b"\x1f\x07\0", "dv"),  # DIF header block
        (b"\x12\0\x0a", "obu"),  # temporal delimiter and sequence header of AV1
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


def _behind_junk(head: bytes) -> str | None:
    """Return the demuxer of a stream that begins with something else, or without a container.

    Captures begin anywhere: within a packet, a picture or a header. Their demuxers look for the
    next one by themselves.
    """
    for mark, container in ((_MXF, "mxf"), (_SYNC, "mpegts"), (_PACK, "mpeg")):
        if mark.search(head):
            return container
    return _raw_stream(head)


def _raw_stream(head: bytes) -> str | None:
    """Return the demuxer of a video stream without a container, by its start codes."""
    codes = [head[at.end() : at.end() + 2] for at in re.finditer(b"\0\0\x01", head)]
    first = {code[0] for code in codes if len(code) == 2}
    # 7 and 8, 33 and 34: the types of the two parameter sets, without which nothing is decoded
    if {7, 8} <= {code & 31 for code in first if code < 0x80 and code & 0x60}:
        return "h264"
    if {33, 34} <= {code[0] >> 1 for code in codes if len(code) == 2 and code[1] == 1}:
        return "hevc"
    if 0xB6 in first and any(0x20 <= code < 0x30 for code in first):  # a picture, a layer
        return "m4v"
    return "mpegvideo" if {0xB3, 0x00} <= first else None  # a sequence header, a picture
