"""Which shown frames does damage in the stream affect?

Errors count from the packet that has them, in decoding order, until a key frame is shown that comes
after it: the frames between may refer to the damaged one. Frames that were decoded before are
whole, even if they are shown later.

What cannot be shown does not count: pictures before the first key frame, and those of an open group
of pictures that are decoded after the first key frame, shown before it, and refer to what was cut
off (leading pictures). Decoders complain about them and skip them.

    decoded    P  B  B | I  b  b  P  B  B        cut before I: b b refer to the lost P
    shown                     I  B  B  P         whole
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import av

# H.264 about references to pictures that were cut off; it shows nothing that needs their pixels
_OF_SKIPPED = ("mmco: unref", "number of reference frames", "co located POCs")
DENSE_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})
"""Codecs whose data has no long runs of zeros, and whose decoders take any data."""
_HOLE = bytes(64)  # chosen: an eighth of a sector; 690 clean files have up to 31 in a row
_MAX_DELAY = 17  # packets: the deepest reordering of H.264 and HEVC is 16 frames
_MAX_PENDING = 256  # chosen: time stamps kept of packets that gave no frame
_MAX_DAMAGES = 64  # chosen: of streams that never recover


class _Damage(NamedTuple):
    """A damaged packet whose frame, or frames that refer to it, are still to be shown."""

    number: int
    pts: int | None
    is_hidden: bool = False

    def is_before(self, pts: int | None) -> bool:
        """Return whether it is shown before a time stamp."""
        return _is_before(self.pts, pts)


class DamageTracker:
    """Counts errors at the frames that show them. Feed each packet, then ask for its frames."""

    def __init__(self, max_gap: float) -> None:
        """Start at the beginning of a stream, or after a seek.

        Args:
            max_gap: a longer step is a jump in time, in ticks of the stream.
        """
        self._max_gap = max_gap
        self._count = 0
        self._numbers: dict[int | None, int] = {}  # of packets, by the time stamp of their frame
        self._has_key = self._is_rooted = False
        self._first_key_pts: int | None = None
        self._key_pts: int | None = None  # of the last key packet
        self._excused: int | None = None
        self._has_shown = False
        self._pending = 0  # errors that no frame has shown yet
        self._damages: list[_Damage] = []  # in decoding order
        self._key_numbers: list[int] = []  # of key packets since the first one

    def feed(
        self,
        packet: "av.Packet[Any]",
        messages: Sequence[str],
        following: Sequence["av.Packet[Any]"],
    ) -> None:
        """Count the errors that decoding a packet has given.

        Args:
            packet: in decoding order.
            messages: of the decoder.
            following: the packets after it, at least two where there are two.
        """
        num_errors = 0
        if messages:  # of most packets there are none, and each packet is fed
            is_harmless = () if self._has_shown else _OF_SKIPPED
            num_errors = sum(not message.startswith(is_harmless) for message in messages)
        pts = packet.pts if packet.pts is not None else packet.dts
        self._count += 1
        # Demuxers mark one of the last two packets before a place where data is missing. Before a
        # jump in time nothing is missing: that is how recordings are joined.
        if packet.is_corrupt and self._jumps(packet, *following[:2]):
            self._excused = self._count
        elif packet.is_corrupt:
            num_errors += 1
        if len(self._numbers) > _MAX_PENDING:
            self._numbers.clear()
        self._numbers[pts] = self._count
        if packet.is_keyframe:
            self._first_key_pts = self._first_key_pts if self._has_key else pts
            self._has_key, self._key_pts = True, pts
            self._key_numbers.append(self._count)
        if num_errors and (self._has_shown or not self._is_leading(pts)):
            self._pending += num_errors
            self._damages.append(_Damage(self._count, pts, packet.is_discard))
            del self._damages[1 : len(self._damages) - _MAX_DAMAGES]

    def is_rootless(self, frame: av.VideoFrame) -> bool:
        """Return whether a frame is shown before the first key frame.

        It refers to pictures before the start, for which decoders take grey without a word.
        """
        is_behind = self._has_key and not _is_before(frame.pts, self._first_key_pts)
        self._is_rooted = self._is_rooted or bool(frame.key_frame) or is_behind
        return not self._is_rooted

    def errors_of(self, frame: av.VideoFrame) -> int:
        """Return the number of errors that a frame shows."""
        number = self._numbers.pop(frame.pts, None)
        is_first, self._has_shown = not self._has_shown, True
        is_corrupt = frame.is_corrupt and not (number and number == self._excused)
        if is_corrupt and not self._damages:
            self._damages.append(_Damage(number or self._count, frame.pts))
        if not self._damages:
            self._key_numbers.clear()
            return 0
        if is_first:
            # the decoder has held back what it could not decode, and shows frames from here on
            self._damages = [d for d in self._damages if d.is_hidden or not d.is_before(frame.pts)]
            if not self._damages:
                self._pending = 0
                return int(is_corrupt)
        errors, first = 0, self._damages[0]
        if not _is_before(frame.pts, first.pts):  # later, if the packet has given no frame
            errors, self._pending = self._pending, 0
        if not is_corrupt:
            self._damages = [d for d in self._damages if not self._is_past(d, frame, number)]
            if not self._damages:
                return errors
        is_after = number is None or number >= self._damages[0].number
        return max(errors, int(is_corrupt or is_after))

    def _jumps(self, *packets: "av.Packet[Any]") -> bool:
        times = [packet.dts for packet in packets if packet.dts is not None]
        return any(abs(after - before) > self._max_gap for before, after in pairwise(times))

    def _is_leading(self, pts: int | None) -> bool:
        return not self._has_key or _is_before(pts, self._key_pts)

    def _is_past(self, damage: _Damage, frame: av.VideoFrame, number: int | None) -> bool:
        """Return whether a frame and all that follow it no longer refer to a damaged packet.

        With B-frames the order of decoding is not that of showing: a key frame that was decoded and
        is shown earlier proves nothing. Streams that refresh a part of each picture have recovery
        points and no key frames: from one to the next all parts are refreshed.
        """
        since = damage.number
        if not frame.key_frame:
            keys = [key for key in self._key_numbers if key > since]
            return len(keys) >= 2 and number is not None and number >= keys[1]
        if number is None or frame.pts is None:
            return self._count - since > _MAX_DELAY
        return number > since or damage.is_before(frame.pts)


def has_hole(data: bytes, codec: str, length_bytes: int) -> bool:
    """Return whether zeros replace a part of a packet, as in files that were copied in part.

    Zeros behind a part of H.264 and HEVC, or behind the data of AV1, are stuffing: frames of
    AVC-Intra have one size.

    Args:
        data: packet of one of `DENSE_CODECS`.
        codec: its name.
        length_bytes: of the number before a part; 0 if 0 0 1 is before it instead.
    """
    if _HOLE not in data:
        return False
    parts, rest = [], data
    if codec == "av1" and data.strip(b"\0"):
        parts, rest = [data], b""
    elif codec in {"h264", "hevc"}:
        parts, rest = (
            _by_length(data, length_bytes) if length_bytes else (data.split(b"\0\0\1"), b"")
        )
    return _HOLE in rest or any(_HOLE in part.rstrip(b"\0") for part in parts)


def length_bytes(codec: str, setup: bytes) -> int:
    """Return the bytes of the length before a part of a packet, as in MP4; 0 where there is none.

    Source: `avcC` and `hvcC` of ISO/IEC 14496-15, whose first byte is the version 1.
    """
    at = {"h264": 4, "hevc": 21}.get(codec, len(setup))
    return (setup[at] & 3) + 1 if setup[:1] == b"\1" and len(setup) > at else 0


def _by_length(data: bytes, length_bytes: int) -> tuple[list[bytes], bytes]:
    """Return the parts of a packet, and what is behind the last whole one."""
    parts, at = [], 0
    while at < len(data):
        start = at + length_bytes
        end = start + int.from_bytes(data[at:start])
        if not start < end <= len(data):
            break
        parts.append(data[start:end])
        at = end
    return parts, data[at:]


def _is_before(pts: int | None, other: int | None) -> bool:
    return pts is not None and other is not None and pts < other
