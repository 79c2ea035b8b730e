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

from typing import Any

import av

_MAX_DELAY = 17  # packets: the deepest reordering of H.264 and HEVC is 16 frames
_MAX_PENDING = 256  # chosen: time stamps kept of packets that gave no frame


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
        self._has_key = False
        self._key_pts: int | None = None  # of the last key packet
        self._last_dts: int | None = None
        self._is_suspect = False
        self._has_shown = False
        self._pending = 0  # errors that no frame has shown yet
        self._damaged: tuple[int, int | None, bool] | None = None  # number, time stamp, is hidden
        self._key_numbers: list[int] = []  # of key packets since then

    def feed(self, packet: "av.Packet[Any]", num_errors: int) -> None:
        """Count the errors that decoding a packet has given."""
        pts, dts = packet.pts if packet.pts is not None else packet.dts, packet.dts
        # Demuxers mark the last packet before a place where data is missing. Before a jump in time
        # nothing is missing: that is how recordings are joined.
        if self._is_suspect and not self._jumps(dts):
            num_errors += 1
        self._is_suspect, self._last_dts = packet.is_corrupt, dts
        self._count += 1
        if len(self._numbers) > _MAX_PENDING:
            self._numbers.clear()
        self._numbers[pts] = self._count
        if packet.is_keyframe:
            self._has_key, self._key_pts = True, pts
            self._key_numbers.append(self._count)
        if num_errors and (self._has_shown or not self._is_leading(pts)):
            self._pending += num_errors
            self._damaged, self._key_numbers = (self._count, pts, packet.is_discard), []

    def errors_of(self, frame: av.VideoFrame) -> int:
        """Return the number of errors that a frame shows."""
        number = self._numbers.pop(frame.pts, None)
        is_first, self._has_shown = not self._has_shown, True
        if self._damaged is None:
            self._key_numbers.clear()
            return int(frame.is_corrupt)
        since, pts, is_hidden = self._damaged
        if is_first and not is_hidden and _is_before(pts, frame.pts):
            # the decoder has held back what it could not decode, and shows frames from here on
            self._damaged, self._pending = None, 0
            return int(frame.is_corrupt)
        errors = 0
        if not _is_before(frame.pts, pts):  # later, if the packet has given no frame
            errors, self._pending = self._pending, 0
        if self._is_whole_again(frame, number) and not frame.is_corrupt:
            self._damaged = None
            return errors
        return max(errors, int(frame.is_corrupt or number is None or number >= since))

    def _jumps(self, dts: int | None) -> bool:
        last = self._last_dts
        return last is not None and dts is not None and abs(dts - last) > self._max_gap

    def _is_leading(self, pts: int | None) -> bool:
        return not self._has_key or _is_before(pts, self._key_pts)

    def _is_whole_again(self, frame: av.VideoFrame, number: int | None) -> bool:
        """Return whether a frame and all that follow it no longer refer to the damaged packet.

        With B-frames the order of decoding is not that of showing, so an earlier key frame proves
        nothing. Streams that refresh a part of each picture have recovery points and no key frames:
        from one to the next all parts are refreshed.
        """
        since, pts, _ = self._damaged or (0, None, False)
        if not frame.key_frame:
            keys = self._key_numbers
            return len(keys) >= 2 and number is not None and number >= keys[1]
        if frame.pts is None or pts is None:
            return self._count - since > _MAX_DELAY
        return frame.pts > pts


def _is_before(pts: int | None, other: int | None) -> bool:
    return pts is not None and other is not None and pts < other
