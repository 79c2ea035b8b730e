"""Sources that are odd but good: cut anywhere, joined, raw, with hidden or lost frames.

Each is made from a clean one, and each frame that is kept is compared with the clean one's pixels.
"""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from tests.support.field_pictures import field_stream
from tests.support.hostile import has_encoder
from tests.support.video_files import ffmpeg, moving_noise, write_video
from videoar.core.errors import MediaError
from videoar.media.damage import has_hole
from videoar.media.scan import DecodedClip, ScanPlan, scan

PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=4", "-threads", 1)
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", 25, "-bf", 3)
OPEN = (*X264, "-x264-params", "open-gop=1")
REFRESH = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", "keyint=25:intra-refresh=1")
X265 = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params")
X265 += ("log-level=none:pools=none:open-gop=1:keyint=25",)
MPEG4, MPEG2 = (("-c:v", name, "-bf", 2, "-g", 12, "-q:v", 3) for name in ("mpeg4", "mpeg2video"))


def make(path, *options):
    ffmpeg(*PICTURE, *options, path)
    return path


def read(path, **plan):
    plan = {"num_frames": 1, "size_px": ((64, 96),), "find_shots": False, **plan}
    plan |= {"max_clips": 999, "deinterlace": "off"}
    items = list(scan(path, ScanPlan(**plan)))
    clips = [item for item in items if isinstance(item, DecodedClip)]
    return clips, (items[-1] if items[-1:] != clips[-1:] else None)


def pixels(clips):
    return [clip.frames_THWC.tobytes() for clip in clips]


def flawless(clips):
    return [clip for clip in clips if not clip.columns["decode_errors"]]


def assert_kept_frames_are_those_of(clean, path, at_least):
    """Every frame without errors is one of the clean source, each once, in order."""
    order = {frame: number for number, frame in enumerate(pixels(read(clean)[0]))}
    clips, metadata = read(path)
    numbers = [order[frame] for frame in pixels(flawless(clips))]  # KeyError: other pixels
    assert all(after == before + 1 for before, after in pairwise(numbers))
    assert len(numbers) >= at_least
    assert metadata.expected_frames in {None, metadata.decoded_frames}


CUT_STREAMS = [(OPEN, "ts"), (X265, "ts"), (MPEG2, "mpg"), (REFRESH, "ts"), (MPEG4, "ts")]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize(("options", "suffix"), CUT_STREAMS)
def test_a_stream_that_begins_within_a_group_of_pictures(tmp_path, options, suffix):
    clean = make(tmp_path / f"clean.{suffix}", *options)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(clean.read_bytes()[clean.stat().st_size // 5 :])
    assert_kept_frames_are_those_of(clean, cut, 40)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("options", [OPEN, REFRESH, X265, MPEG4])
def test_a_part_that_was_copied_out_with_an_edit_list(tmp_path, options):
    clean = make(tmp_path / "clean.mp4", *options)
    ffmpeg("-ss", 1.4, "-i", clean, "-c", "copy", tmp_path / "cut.mp4")
    assert_kept_frames_are_those_of(clean, tmp_path / "cut.mp4", 35)


def test_damaged_sound_says_nothing_about_the_pictures(tmp_path):
    sound = ("-f", "lavfi", "-i", "sine=d=4", "-c:a", "aac")
    ffmpeg(*PICTURE[:4], *sound[:4], *OPEN, *sound[4:], tmp_path / "clean.mp4")
    data = bytearray((tmp_path / "clean.mp4").read_bytes())
    with av.open(str(tmp_path / "clean.mp4")) as container:
        for packet in container.demux(audio=0):
            if packet.size:
                data[packet.pos : packet.pos + packet.size] = b"\x5a" * packet.size
    (tmp_path / "damaged.mp4").write_bytes(data)
    clips, _ = read(tmp_path / "damaged.mp4")
    assert len(flawless(clips)) == 100


def test_samples_that_are_not_shown_are_not_expected(tmp_path):
    clean = make(tmp_path / "clean.mp4", *X264)
    ffmpeg("-ss", 1.4, "-i", clean, "-c", "copy", tmp_path / "hidden.mp4")
    _, metadata = read(tmp_path / "hidden.mp4")
    assert metadata.expected_frames == metadata.decoded_frames == 65
    held = ("-vf", "select=not(eq(mod(n\\,9)\\,5))", "-vsync", "vfr", *MPEG4[:2], "-q:v", 3)
    _, metadata = read(make(tmp_path / "held.avi", *held))  # its muxer fills gaps with empty chunks
    assert metadata.expected_frames == metadata.decoded_frames == 89
    ffmpeg("-i", clean, "-c", "copy", "-movflags", "+faststart", tmp_path / "front.mp4")
    whole = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    _, metadata = read(tmp_path / "cut.mp4")
    assert metadata.expected_frames == 100 > metadata.decoded_frames + 10


@pytest.mark.parametrize("offset_s", [0, 300, -20])
def test_a_jump_of_the_clock_ends_a_shot_and_nothing_else(tmp_path, offset_s):
    first = make(tmp_path / "first.ts", *X264, "-output_ts_offset", 30)
    other = ffmpeg("-i", first, "-c", "copy", "-output_ts_offset", offset_s, "-f", "mpegts", "-")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + other)
    clips, metadata = read(joined, num_frames=20)
    assert [clip.columns["cut_in"] for clip in clips] == ["start"] * 5 + ["gap"] * 5
    assert len(flawless(clips)) == 10
    assert pixels(clips[:5]) == pixels(clips[5:])
    assert metadata.src_rate_fps == pytest.approx(25)
    starts = [clip.columns["span_start_us"] for clip in clips]
    assert starts == sorted(set(starts))
    with pytest.raises(MediaError, match="shows more than 6 s"):
        read(joined, max_duration_s=6)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [188, 192])
def test_packets_that_are_sent_twice_are_no_damage(tmp_path, spacing):
    whole = make(tmp_path / "whole.ts", "-t", 1, *X264)
    data, extra = whole.read_bytes(), bytes(spacing - 188)
    packets = [extra + data[at : at + 188] for at in range(0, len(data), 188)]
    (tmp_path / "twice.ts").write_bytes(b"".join(p + p * (p[-1] % 3 > 0) for p in packets))
    clips, _ = read(tmp_path / "twice.ts")
    assert pixels(flawless(clips)) == pixels(read(whole)[0])


def test_parts_of_a_recording_whose_clock_is_set_back_have_each_frame_once(tmp_path):
    first = make(tmp_path / "first.ts", *X264, "-output_ts_offset", 30)
    longer = ffmpeg(
        *PICTURE[:3], f"{PICTURE[3][:-1]}8", *X264, "-output_ts_offset", 27, "-f", "mpegts", "-"
    )
    (joined := tmp_path / "joined.ts").write_bytes(first.read_bytes() + longer)
    whole, _ = read(joined)
    shared = [clip for part in range(3) for clip in read(joined, part=part, parts=3)[0]]
    assert len(whole) == 300
    assert pixels(shared) == pixels(whole)


@pytest.mark.slow
def test_a_live_recording_whose_clock_begins_anew_has_each_frame_once(tmp_path):
    path = make(tmp_path / "a.flv", *X264)
    data, place = bytearray(path.read_bytes()), 13
    while place < len(data):  # each tag: its type, size and time, in ms, then the size again
        time_ms = int.from_bytes(data[place + 4 : place + 7], "big")
        anew_ms = time_ms if time_ms < 1200 else time_ms - 1200
        data[place + 4 : place + 7] = anew_ms.to_bytes(3, "big")
        place += 15 + int.from_bytes(data[place + 1 : place + 4], "big")
    path.write_bytes(data)
    shared = [clip for part in range(2) for clip in read(path, part=part, parts=2)[0]]
    assert len(shared) == 100
    assert pixels(shared) == pixels(read(path)[0])


SEEKS = [(MPEG2, "mpg"), (OPEN, "ts"), (REFRESH, "ts"), (MPEG4, "ts"), (OPEN, "flv"), (OPEN, "mkv")]
SEEKS += [
    (OPEN, "avi"),
    (MPEG4, "avi"),
    (("-c:v", "libvpx", "-b:v", "500k", "-g", 25), "webm"),
    (X265, "mp4"),
]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize(("options", "suffix"), SEEKS)
def test_parts_have_each_frame_once(tmp_path, options, suffix):
    path = make(tmp_path / f"a.{suffix}", *options)
    if suffix in {"mkv", "webm"}:  # written to a pipe, it has no index
        path.write_bytes(ffmpeg("-i", path, "-c", "copy", "-f", "matroska", "-"))
    whole, _ = read(path)
    for parts in (2, 3, 7):
        shared = [clip for part in range(parts) for clip in read(path, part=part, parts=parts)[0]]
        assert pixels(flawless(shared)) == pixels(whole)
        places = [[c.columns["span_start_us"] for c in clips] for clips in (shared, whole)]
        assert places[0] == places[1]


SCALE = "scale=96:64:flags=area+accurate_rnd+full_chroma_int+full_chroma_inp"
RGB = ("-vf", SCALE, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
RAW = [
    ("h264", (*X264, "-r", 24), "h264", 24),
    ("hevc", (*X265, "-r", 24), "hevc", 24),
    ("m1v", ("-c:v", "mpeg1video", "-r", 24), "mpeg1video", 24),
    ("m2v", (*MPEG2, "-r", 24), "mpeg2video", 24),
    ("m4v", (*MPEG4, "-r", 24, "-f", "m4v"), "mpeg4", 24),
    ("ivf", ("-c:v", "libvpx", "-b:v", "500k"), "vp8", 25),
    ("mxf", MPEG2, "mpeg2video", 25),
    ("y4m", (), "rawvideo", 25),
    ("gif", (), "gif", 25),
    ("mov", ("-c:v", "cfhd", "-vf", "scale=192:128"), "cfhd", 25),
    ("mov", ("-c:v", "qtrle"), "qtrle", 25),
    ("avi", ("-c:v", "rawvideo", "-pix_fmt", "bgr24"), "rawvideo", 25),
    ("avi", ("-c:v", "huffyuv"), "huffyuv", 25),
    ("avi", ("-c:v", "ffvhuff"), "ffvhuff", 25),
    ("avi", ("-c:v", "utvideo"), "utvideo", 25),
    ("dv", ("-c:v", "dvvideo", "-s", "pal", "-pix_fmt", "yuv420p"), "dvvideo", 25),
]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize(("suffix", "options", "codec", "rate_fps"), RAW)
def test_raw_streams_and_rare_codecs_are_read(tmp_path, suffix, options, codec, rate_fps):
    if codec != "rawvideo" and "-c:v" in options and not has_encoder(options[1]):
        pytest.skip(f"this ffmpeg has no encoder {options[1]}")
    path = make(tmp_path / f"a.{suffix}", *options)
    shown = ffmpeg("-i", path, "-vsync", 0, *RGB)
    frames = np.frombuffer(shown, np.uint8).reshape(-1, 64, 96, 3).astype(int)
    clips, metadata = read(path, allow_animations=True)
    assert (metadata.codec, metadata.src_rate_fps) == (codec, pytest.approx(rate_fps, rel=1e-4))
    assert len(clips) == len(frames)
    apart = [c.frames_THWC[0].mean(-1) - f.mean(-1) for c, f in zip(clips, frames, strict=True)]
    # DV is of another shape, so another part is shown
    assert np.abs(apart).mean() < 3 or codec == "dvvideo"
    plain = tmp_path / "junk.bin"
    plain.write_bytes(bytes(range(1, 200)) + path.read_bytes())
    if suffix in {"m1v", "m2v", "m4v", "mxf"}:
        assert len(read(plain)[0]) == len(frames)


@pytest.mark.parametrize(("options", "suffix"), [(X264, "ts"), (MPEG2, "mpg")])
def test_junk_before_a_capture_is_skipped(tmp_path, options, suffix):
    whole = make(tmp_path / f"whole.{suffix}", *options)
    (tmp_path / "junk.bin").write_bytes(bytes(range(256)) * 9 + whole.read_bytes())
    assert pixels(read(tmp_path / "junk.bin")[0]) == pixels(read(whole)[0])


def test_lost_frames_show_in_the_times_unless_the_rate_varies(tmp_path):
    vp8 = ("-c:v", "libvpx", "-b:v", "500k", "-g", 999)
    path = make(tmp_path / "whole.webm", *vp8)
    with av.open(str(path)) as source, av.open(str(tmp_path / "lost.webm"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number not in {30, 31, 70}:
                packet.stream = stream
                target.mux(packet)
    clips, _ = read(tmp_path / "lost.webm", num_frames=97)
    assert clips[0].columns["missing_frames"] == 3
    clips, _ = read(tmp_path / "lost.webm", num_frames=8)  # all later ones refer to what is lost
    assert [clip.columns["missing_frames"] for clip in clips] == [0] * 3 + [2] * 5 + [3] * 4
    varying = ("-vf", "select=gt(mod(n*n\\,7)\\,1)", "-vsync", "vfr", *vp8)
    clips, _ = read(make(tmp_path / "varying.webm", *varying), num_frames=50)
    assert clips[0].columns["missing_frames"] == 0


def test_the_film_is_chosen_among_streams(tmp_path):
    film = write_video(tmp_path / "film.mp4", moving_noise(9))
    large = write_video(tmp_path / "large.mp4", moving_noise(9, size=(64, 96)))
    ffmpeg("-i", film, "-frames:v", 1, tmp_path / "cover.png")
    cover = ("-i", tmp_path / "cover.png", "-map", 0, "-map", 1, "-c", "copy", "-disposition:1")
    both = ("-map", 0, "-map", 1, "-c", "copy")
    ffmpeg("-i", film, "-i", large, *both, tmp_path / "two.ts")
    ffmpeg("-i", film, "-i", large, *both, "-disposition:v:1", 0, tmp_path / "disabled.mp4")
    ffmpeg("-i", film, *cover, "attached_pic", tmp_path / "cover.mp4")
    denied = ("-map", 0, "-map", 1, "-c:v:0", "zmbv", "-c:v:1", "copy")
    ffmpeg("-i", large, "-i", film, *denied, tmp_path / "denied.mkv")
    chosen = {"two.ts": 1, "disabled.mp4": 0, "cover.mp4": 0, "denied.mkv": 1}
    for name, index in chosen.items():
        assert read(tmp_path / name)[1].stream_index == index, name
    song = ("-f", "lavfi", "-i", "sine=d=1", *cover, "attached_pic", "-c:a", "aac")
    ffmpeg(*song, tmp_path / "song.m4a")
    with pytest.raises(MediaError, match="only a picture") as error:
        read(tmp_path / "song.m4a")
    assert error.value.code == "NO_VIDEO_STREAM"


def test_a_recording_that_was_not_ended_is_named(tmp_path):
    data = write_video(tmp_path / "a.mp4", moving_noise(9)).read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(MediaError, match=r"no index of them \(box moov\)") as error:
        read(tmp_path / "a.mp4")
    assert error.value.code == "TRUNCATED"


@pytest.mark.slow
def test_the_shape_of_a_pixel_may_change_where_the_stream_alone_states_it(tmp_path):
    sizes = (("-bf", 2, "-vf", f"setsar={shape}") for shape in ("1/1", "4/3"))
    parts = [make(tmp_path / f"{i}.h264", "-t", 0.4, *X264, *s) for i, s in enumerate(sizes)]
    (tmp_path / "both.h264").write_bytes(b"".join(path.read_bytes() for path in parts))
    alone = [pixels(read(path, num_frames=5)[0]) for path in parts]
    assert alone[0] != alone[1]
    clips, _ = read(tmp_path / "both.h264", num_frames=5)
    assert pixels(clips) == alone[0] + alone[1]
    assert [clip.columns["cut_in"] for clip in clips[::2]] == ["start", "gap"]


@pytest.mark.slow
def test_an_avi_has_no_times_but_those_of_decoding(tmp_path):
    clean = make(tmp_path / "clean.mp4", "-t", 1, *X264)
    ffmpeg("-i", clean, "-c", "copy", tmp_path / "b.avi")
    clips, metadata = read(tmp_path / "b.avi")
    assert pixels(clips) == pixels(read(clean)[0])
    assert [clip.columns["span_start_us"] for clip in clips] == list(range(0, 1_000_000, 40_000))
    assert (metadata.expected_frames, metadata.is_vfr) == (25, False)


def with_bits(filters):
    return ("-t", 0.4, *X264, "-bsf:v", f"h264_metadata={filters}")


RGB15 = ("-t", 0.2, "-c:v", "qtrle", "-pix_fmt", "rgb555be")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reserved.ts", with_bits("matrix_coefficients=3")),
        ("unknown.ts", with_bits("matrix_coefficients=77")),
        ("gbr.ts", with_bits("matrix_coefficients=0")),
        ("rgb15.mov", RGB15),
    ],
)
def test_odd_colours_are_as_ffmpeg_shows_them(tmp_path, name, options):
    path = make(tmp_path / name, *options)
    theirs = np.frombuffer(ffmpeg("-i", path, "-vsync", 0, *RGB), np.uint8).astype(int)
    ours = np.stack([clip.frames_THWC for clip in read(path)[0]])
    assert abs(ours.mean() - theirs.mean()) < 0.5
    assert np.abs(ours.ravel() - theirs).mean() < 13  # hard edges of a film of 96x64


KEY = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb")
CENC = ("-encryption_scheme", "cenc-aes-ctr", *KEY, "-encryption_kid", KEY[1])
FRAGMENTS = ("-movflags", "frag_keyframe+empty_moov")


def without_start(data):
    return data[data.index(b"moof") - 4 :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "change", "code", "what"),
    [
        ("a.mp4", CENC, None, "ENCRYPTED", "its key is elsewhere"),
        ("a.m4s", (*FRAGMENTS, "-f", "mp4"), without_start, "TRUNCATED", "fragment without"),
        ("a.nut", (), None, "CONTAINER_DENIED", "container NUT"),
        ("a.mp4", ("-tag:v", "avc1"), lambda data: data.replace(b"avc1", b"dva1"),
         "COLOR_DENIED", "Dolby Vision"),
        ("a.ts", ("-bsf:v", "h264_metadata=matrix_coefficients=8"), None,
         "COLOR_DENIED", "matrix ycgco"),
        ("a.mkv", ("-vf", "setsar=80"), None, "TOO_LARGE_DIM", "shown as 7680x64"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_shown_is_refused_with_its_reason(
    tmp_path, name, options, change, code, what
):
    path = make(tmp_path / name, "-t", 0.4, *X264, *options)
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(MediaError, match=what) as error:
        read(path)
    assert error.value.code == code


def test_a_false_duration_is_no_reason(tmp_path):
    late = "setpts='PTS+30000*gt(N,9)/TB'"
    path = make(tmp_path / "a.mkv", "-frames:v", 20, "-vf", late, "-vsync", "passthrough", *X264)
    assert len(read(path, max_duration_s=6)[0]) == 20


def raw_twice(folder):
    path = make(folder / "a.h264", "-t", 1, *X264)
    path.write_bytes(2 * path.read_bytes())
    return path


def wrapped(folder):
    return make(folder / "a.ts", "-t", 2, *X264, "-output_ts_offset", 2**33 / 90_000 - 1)


def overlapping(folder):
    first = make(folder / "a.ts", "-t", 1, *X264, "-muxdelay", 0)
    other = ffmpeg(
        "-i", first, "-c", "copy", "-output_ts_offset", 1.04, "-muxdelay", 0, "-f", "mpegts", "-"
    )
    first.write_bytes(first.read_bytes() + other)
    return first


def set_back(folder):
    first = make(folder / "a.ts", "-t", 1, *X264)
    longer = make(folder / "b.ts", "-vf", "negate", *X264)
    first.write_bytes(first.read_bytes() + longer.read_bytes())
    return first


def set_back_live(folder):
    """A recording without an index whose clusters begin at 0 again."""
    live = ("-t", 1, *X264, "-f", "matroska", "-live", 1, "-")
    first, other = ffmpeg(*PICTURE, *live), ffmpeg(*PICTURE, "-vf", "negate", *live)
    (folder / "a.mkv").write_bytes(first + other[other.index(b"\x1f\x43\xb6\x75") :])
    return folder / "a.mkv"


def before_zero(folder):
    clean = make(folder / "clean.mp4", "-t", 2, *X264)
    early = ("-itsoffset", -1, "-i", clean, "-c", "copy", "-avoid_negative_ts", "disabled")
    ffmpeg(*early, folder / "a.mkv")
    return folder / "a.mkv"


ODD_CLOCKS = [raw_twice, wrapped, overlapping, set_back, set_back_live, before_zero]


@pytest.mark.slow
@pytest.mark.parametrize("source", ODD_CLOCKS)
def test_frames_are_found_again_by_their_times(tmp_path, source):
    path = source(tmp_path)
    clips, metadata = read(path, num_frames=10)
    assert len(clips) >= 4
    assert metadata.is_set_back == (source in {set_back, set_back_live})
    for clip, known in zip(clips, [None, *[metadata.is_set_back] * len(clips)], strict=False):
        times_us = tuple(clip.columns["frame_times_us"])
        plan = {"start_pts": metadata.start_pts, "is_set_back": known}
        (again,), _ = read(path, take_us=times_us, **plan)
        assert pixels([again]) == pixels([clip])


@pytest.mark.slow
def test_a_shot_ends_where_high_dynamic_range_begins(tmp_path):
    sdr = make(tmp_path / "sdr.h264", "-t", 0.4, *X264, "-color_trc", "bt709")
    pq = make(tmp_path / "pq.h264", "-t", 0.4, *X264, "-color_trc", "smpte2084")
    (tmp_path / "both.h264").write_bytes(sdr.read_bytes() + pq.read_bytes())
    clips, _ = read(tmp_path / "both.h264", num_frames=4)
    assert [clip.columns["tone_map"] for clip in clips] == [None, None, "mobius", "mobius"]
    assert clips[2].columns["cut_in"] == "gap"


@pytest.mark.slow
def test_all_frames_between_two_damaged_ones_count(tmp_path):
    whole = make(tmp_path / "whole.ts", *X264).read_bytes()
    packets = [whole[at : at + 188] for at in range(0, len(whole), 188)]
    lost = range(len(packets) // 4, len(packets) // 2, 9)
    kept = [packet for number, packet in enumerate(packets) if number not in lost]
    (tmp_path / "lost.ts").write_bytes(b"".join(kept))
    clips, _ = read(tmp_path / "lost.ts")
    clean = set(pixels(read(tmp_path / "whole.ts")[0]))
    assert set(pixels(flawless(clips))) <= clean
    assert 40 < len(flawless(clips)) < 80


VP9 = ("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-b:v", "900k", "-g", 25, "-cpu-used", 8)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "suffix"), [(X265, "mp4"), (X265, "hevc"), (VP9, "ivf")])
def test_zeros_in_place_of_data_are_damage_though_decoders_take_them(tmp_path, options, suffix):
    path = make(tmp_path / f"a.{suffix}", *options)
    clean = set(pixels(read(path)[0]))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size > 400 and not p.is_keyframe]
    place = data.index(bytes(packets[len(packets) // 2])) + 200
    data[place : place + 100] = bytes(100)
    path.write_bytes(data)
    clips, _ = read(path)
    assert not clean.issuperset(pixels(clips))
    assert clean.issuperset(pixels(flawless(clips)))
    assert len(flawless(clips)) >= 60


ZEROS, NAL = bytes(64), b"\x41" + b"\x9a" * 99


@pytest.mark.parametrize(
    ("data", "codec", "length_bytes", "expected"),
    [
        (b"\0\0\0\x64" + NAL, "h264", 4, False),
        (b"\0\0\0\xa4" + NAL + ZEROS, "h264", 4, False),  # stuffing
        (b"\0\xa4" + NAL + ZEROS + b"\0\x64" + NAL, "hevc", 2, False),  # of each part
        (b"\0\0\0\xa5" + NAL + ZEROS + b"\x9a", "h264", 4, True),
        (b"\0\0\0\x64" + NAL + ZEROS, "h264", 4, True),  # the length of a part is lost
        (ZEROS, "h264", 4, True),
        (b"\0\0\0\1" + NAL + ZEROS + b"\0\0\1" + NAL + ZEROS, "h264", 0, False),
        (b"\0\0\1" + NAL + ZEROS + b"\x9a", "hevc", 0, True),
        (NAL + ZEROS, "av1", 0, False),
        (NAL + ZEROS + NAL, "av1", 0, True),
        (ZEROS, "av1", 0, True),
        (NAL + ZEROS, "vp9", 0, True),
    ],
)
def test_zeros_behind_a_part_are_stuffing(data, codec, length_bytes, expected):
    assert has_hole(data, codec, length_bytes) == expected


@pytest.mark.slow
def test_padded_frames_of_one_size_are_whole(tmp_path):
    intra = ("-c:v", "libx264", "-avcintra-class", 100, "-pix_fmt", "yuv422p10le", "-g", 1)
    path = make(tmp_path / "a.mkv", *intra, "-vf", "scale=1920x1080", "-r", 25, "-frames:v", 4)
    clips, _ = read(path)
    assert len(flawless(clips)) == 4


@pytest.mark.slow
def test_two_fields_that_are_samples_of_their_own_are_one_frame(tmp_path):
    luma_THW = 16 + moving_noise(20, size=(64, 96))[..., 1] // 2
    with av.open(str(tmp_path / "fields.mp4"), "w") as target:
        stream = target.add_stream("h264", 50, width=96, height=64)
        for number, picture in enumerate(field_stream(luma_THW)):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = stream, Fraction(1, 50)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            target.mux(packet)
    clips, metadata = read(tmp_path / "fields.mp4")
    assert metadata.expected_frames == metadata.decoded_frames == len(clips) == 20
    shown = np.stack([clip.frames_THWC[0, ..., 1] for clip in clips])
    assert np.abs(shown - (luma_THW - 16.0) * 255 / 219).max() < 2
