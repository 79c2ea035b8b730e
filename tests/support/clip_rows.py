"""Complete rows of clips@1 for tests, which every policy keeps, and snapshots of them."""

import pyarrow as pa

from tests.support.stage_chain import commit
from videoar.contracts.contract import load_contract
from videoar.core.ids import sha256_hex
from videoar.media.synthetic import draw
from videoar.media.transcode import encode_clips
from videoar.pipeline.stage import Output


def clip_row(name="a", **change):
    """Return a row that the default policy keeps, with its percentiles replaced by numbers.

    Equal names give equal ids, hashes and addresses.
    """
    source_id = sha256_hex(name.encode())
    return {
        "clip_id": source_id[:32],
        "source_id": source_id,
        "source_uri": f"file:///{name}",
        "source_name": name,
        "container": "mov",
        "codec": "h264",
        "pix_fmt": "yuv420p",
        "src_width_px": 320,
        "src_height_px": 240,
        "src_rate_fps": 25.0,
        "is_vfr": False,
        "rotation_deg": 0,
        "expected_frames": 100,
        "decoded_frames": 100,
        "decode_errors": 0,
        "missing_frames": 0,
        "color_transfer": "bt709",
        "tone_map": None,
        "is_set_back": None,
        "picture_kind": None,
        "combed_frac": 0.0,
        "deinterlacer": None,
        "active_box": None,
        "span_start_us": 0,
        "span_end_us": 2_000_000,
        "frame_index_start": 0,
        "frame_times_us": [0],
        "start_pts": 0,
        "num_frames": 17,
        "rate_fps": 8.0,
        "width_px": 64,
        "height_px": 64,
        "cut_in": "start",
        "cut_in_score": 0.0,
        "luma_mean": 100.0,
        "black_frac": 0.0,
        "freeze_frac": 0.0,
        "still_frac": 0.0,
        "blur_p10": 900.0,
        "motion_mean": 3.0,
        "motion_per_s": 60.0,
        "motion_max": 5.0,
        "letterbox_frac": 0.0,
        "phash": [int(source_id[i : i + 15], 16) for i in (0, 15, 30)],
        "split": "train",
        "video_key": "objects/x.mp4",
        "video_sha256": source_id,
        "video_size_bytes": 1,
    } | change


def video_columns(store, data, num_frames, height_px, width_px):
    """Store an encoded clip of 8 fps; return the columns that say where and what it is."""
    ref = store.put_object(data, ".mp4")
    return {
        "num_frames": num_frames,
        "rate_fps": 8.0,
        "width_px": width_px,
        "height_px": height_px,
        "video_key": ref.key,
        "video_sha256": ref.sha256,
        "video_size_bytes": ref.size_bytes,
    }


def stored(store, frames_NTHWC, crf=12):
    """Store drawn clips at 8 fps; yield their columns."""
    for data, frames in zip(encode_clips(frames_NTHWC, 8.0, crf), frames_NTHWC, strict=True):
        yield video_columns(store, data, *frames.shape[:3])


def drawn_rows(store, scenes):
    """Return a row per scene: 9 frames of 32 px, with its clip in the store."""
    videos = stored(store, [draw(scene, 9, 32, 8.0) for scene in scenes])
    return [clip_row(str(i), **video) for i, video in enumerate(videos)]


def clips_of(store, *files):
    """Commit lists of rows as the files of a snapshot `clips`."""
    schema = load_contract("clips@1").arrow_schema
    outputs = [Output(pa.Table.from_pylist(list(rows), schema)) for rows in files]
    return commit(store, "clips", "clips@1", outputs, rows=[list(rows) for rows in files])
