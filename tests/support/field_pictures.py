"""H.264 whose frames are coded as two pictures, one of each field, as in broadcasts (PAFF).

x264 does not write it. The pictures are those of macroblocks without compression (I_PCM).
Source: ITU-T H.264, 7.3.2.1 (sequence), 7.3.2.2 (picture parameters), 7.3.3 (slice), 7.3.5.
"""

import re

import numpy as np

TOP, BOTTOM = 0, 1


def field_stream(luma_THW):
    """Return the two pictures of each frame: uint8 luma [T, H, W], H and W multiples of 32."""
    height, width = luma_THW.shape[1:]
    pictures = []
    for number, luma_HW in enumerate(luma_THW):
        for field in (TOP, BOTTOM):
            is_key = number == 0 and field == TOP
            pictures.append(_picture(luma_HW[field::2], is_key, number, field))
    # main profile, level 3.0, one reference, order of pictures in 8 bits, 4:2:0
    sequence = f"{77:08b}{0:08b}{30:08b}" + _ue(0, 0, 0, 4, 1) + "0" + _ue(width // 16 - 1)
    sequence += _ue(height // 32 - 1) + "0" + "0" + "1" + "0" + "0"  # in maps of two fields
    parameters = _ue(0, 0) + "00" + _ue(0, 0, 0) + "000" + _ue(0, 0, 0) + "000"
    pictures[0] = _unit(0x67, sequence + "1") + _unit(0x68, parameters + "1") + pictures[0]
    return pictures


def _picture(luma_HW, is_key, number, field):
    head = _ue(0, 7, 0) + f"{number % 16:04b}1{field}" + (_ue(0) if is_key else "")
    head += f"{(2 * number + field) % 256:08b}" + ("00" if is_key else "0") + _ue(0)
    bits, grey = [head], "10000000" * 128
    for top in range(0, luma_HW.shape[0], 16):
        for left in range(0, luma_HW.shape[1], 16):
            block = luma_HW[top : top + 16, left : left + 16]
            bits.append(_ue(25))
            bits.append("0" * (-sum(map(len, bits)) % 8))
            bits.append("".join(map(str, np.unpackbits(np.ascontiguousarray(block)))) + grey)
    return _unit(0x65 if is_key else 0x21, "".join(bits) + "1")


def _ue(*values):
    """Return values as Exp-Golomb codes."""
    codes = (f"{value + 1:b}" for value in values)
    return "".join("0" * (len(code) - 1) + code for code in codes)


def _unit(head, bits):
    bits += "0" * (-len(bits) % 8)
    payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
    # three bytes that would look like a start code are broken up
    return b"\0\0\0\1" + bytes([head]) + re.sub(rb"(?s)\0\0(?=[\0-\3])", b"\0\0\3", payload)
