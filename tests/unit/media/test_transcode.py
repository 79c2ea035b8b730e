"""Clip files: their bytes depend on their frames alone."""

import numpy as np
import pytest

from tests.support.video_files import moving_noise
from videoar.core.errors import MediaError
from videoar.media.decode import decode_clip
from videoar.media.transcode import encode_clips


def test_clip_files_do_not_depend_on_other_clips_of_the_call():
    one, other = moving_noise(17, 1), moving_noise(17, 2)
    together = encode_clips([one, other], 8.0, 12)
    assert together == [encode_clips([one], 8.0, 12)[0], encode_clips([other], 8.0, 12)[0]]
    assert np.abs(decode_clip(together[0]).astype(int) - one).mean() < 8
    with pytest.raises(MediaError, match="cannot be decoded"):
        decode_clip(b"no video at all")
