"""The bytes of an MPEG transport stream without packets that were sent twice.

A packet may be sent again, as the next one of its PID, for receivers that have lost the first one.
FFmpeg appends the data of both, which damages pictures. Here the second one becomes a null packet,
so that all places in the file stay as they are.
Source: ISO/IEC 13818-1, 2.4.3.2 and 2.4.3.3.
"""

import re
from io import FileIO
from pathlib import Path

import numpy as np

from videoar.media.probe import read_error

_HEAD_BYTES = 1 << 16
_PACKET_BYTES = 188
_SPACINGS = (188, 192, 204)  # 4 bytes of time code before a packet, or 16 of parity behind it
_SYNC = 0x47
_NULL_PID = 0x1F, 0xFF
_HAS_ADAPTATION, _HAS_PAYLOAD = 0x20, 0x10


class TransportStream(FileIO):
    """A file to read with `av.open`."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            OSError: it cannot be opened or read.
        """
        super().__init__(path)
        self._path = path
        self._last: dict[int, tuple[int, np.ndarray]] = {}  # by PID: control byte, packet
        first, self._spacing = _first_packet(super().read(_HEAD_BYTES))
        self._code_bytes = 4 if self._spacing == 192 else 0
        self._first = first - self._code_bytes
        self.seek(0)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place in the file."""
        self._last.clear()
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return whole packets of at most `size` bytes; less than one at a place within it.

        Raises:
            VideoARError: see `read_error`.
        """
        try:
            at = self.tell()
            data = np.frombuffer(super().read(size), np.uint8).copy()
            start = (self._first - at) % self._spacing
            count = (len(data) - start) // self._spacing
            if count > 0:
                end = start + count * self._spacing
                super().seek(at + end)
                data = data[:end]
                packets = data[start:].reshape(count, -1)[:, self._code_bytes :]
                self._erase_repeated(packets[:, :_PACKET_BYTES])
        except OSError as error:
            raise read_error(self._path, error) from error
        return data.tobytes()

    def _erase_repeated(self, packets: np.ndarray) -> None:
        """Make null packets of those that repeat the one before with their PID: uint8 [n, 188]."""
        heads = packets[:, :5].tolist()
        for packet, (sync, high, low, control, length) in zip(packets, heads, strict=True):
            if sync != _SYNC:
                continue
            pid = (high & 0x1F) << 8 | low
            same, before = self._last.get(pid, (None, packet))
            # times in the adaptation field may differ
            start = 5 + length if control & _HAS_ADAPTATION else 4
            if same == control and np.array_equal(packet[start:], before[start:]):
                packet[1:3] = _NULL_PID
            elif control & _HAS_PAYLOAD:
                self._last[pid] = control, packet


def _first_packet(head: bytes) -> tuple[int, int]:
    """Return where the first packet is, and how far it is from there to the next one."""
    for spacing in _SPACINGS:
        first = re.search(rb"(?s)G(?=(?:.{%d}G){2})" % (spacing - 1), head)
        if first:
            return first.start(), spacing
    return 0, _PACKET_BYTES
