"""Bits packed into bytes and back, in the documented order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoar.storage.token_codec import bytes_per_frame, checksum, pack_bits, unpack_bits


@given(
    num_frames=st.integers(1, 4),
    scales=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    num_bits=st.integers(1, 17),
    seed=st.integers(0, 1000),
)
def test_round_trip(num_frames, scales, num_bits, seed):
    random = np.random.default_rng(seed)
    bits = [random.integers(0, 2, (num_frames, h, w, num_bits)) for h, w in scales]
    data = pack_bits(bits)
    assert len(data) == num_frames * bytes_per_frame(scales, num_bits)
    for got, expected in zip(unpack_bits(data, num_frames, scales, num_bits), bits, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_bits_are_packed_by_frame_scale_position_msb_first():
    small = np.zeros((2, 1, 1, 3), bool)
    large = np.zeros((2, 1, 2, 3), bool)
    small[0, 0, 0, 0] = True  # bit 0 of frame 0
    large[0, 0, 1, 2] = True  # bit 8 of frame 0: 3 of the small scale, 3 + 2 of the large one
    large[1, 0, 0, 0] = True  # bit 3 of frame 1, which starts at a byte
    assert pack_bits([small, large]) == bytes([0b10000000, 0b10000000, 0b00010000, 0])


def test_unpack_wrong_length_is_rejected():
    with pytest.raises(ValueError, match="reshape"):
        unpack_bits(b"123", 1, [(1, 1)], 8)


def test_checksum_is_signed_and_changes_with_one_bit():
    values = {checksum(bytes([i, 0])) for i in range(64)}
    assert len(values) == 64
    assert min(values) < 0 < max(values)
    assert all(-(2**63) <= value < 2**63 for value in values)
