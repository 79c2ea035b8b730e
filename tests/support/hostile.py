"""Hostile and unusual inputs for ingest, each with the outcomes that it may have.

All files are generated here, by ffmpeg and from bytes. Files that refer to others refer to
`.canary.mp4` beside them: it is hidden, so never listed, and nothing may open it. Sizes are tiny:
the risk is in what headers claim and in what readers do with it.
"""

import os
import random
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.support.video_files import ffmpeg

CLIPS = "clips"
CANARY = ".canary.mp4"
PICTURE = "testsrc2=s=64x48:r=12"  # every frame differs
BAITS: dict[str, Sequence[str]] = {
    "hls-absolute.mp4": (),
    "hls-relative.mp4": (),
    "concat-absolute.mp4": ("-safe", "0"),
    "concat-relative.mp4": ("-safe", "0"),
    "dash.mp4": (),
    "dref-absolute.mov": ("-enable_drefs", "1", "-use_absolute_path", "1"),
    "dref-relative.mov": ("-enable_drefs", "1", "-use_absolute_path", "1"),
}
"""Files that make plain ffmpeg open the canary, and the options with which it does."""
NAMES = (
    "-i -leading dash.mp4",
    "new\nline.mp4",
    "quo'te\"s.mp4",
    "per%cent%20%s%d.mp4",
    " spaces  .mp4",
    "vid\u00e9o_\u6d4b\u8bd5_\U0001f3ac.mp4",
    "n" * 240 + ".mp4",
    "concat:a|b.mp4",
    "pipe:0",
    "$(touch hacked)`touch hacked`;touch hacked.mp4",
    "back\\slash\ttab?query#fragment.mp4",
    "\u202egnitteser\r\x1b[31m.mp4",
    os.fsdecode(b"raw\xff\xfe.mp4"),
    "raw\\xff\\xfe.mp4",  # prints like the one before
)


@cache
def has_encoder(name: str) -> bool:
    return f" {name} ".encode() in ffmpeg("-encoders")


def video(path: Path, *options: object, picture: str = PICTURE, num_frames: int = 20) -> Path:
    """Encode a test picture; `options` are ffmpeg's for the output."""
    source = ("-f", "lavfi", "-i", picture, "-frames:v", num_frames, "-threads", 1)
    ffmpeg(*source, *(options or ("-c:v", "libx264", "-pix_fmt", "yuv420p")), f"file:{path}")
    return path


def make(folder: Path) -> dict[str, set[str]]:
    """Fill a folder; return, by file name, the codes (or `CLIPS`) that it may end with."""
    ends: dict[str, set[str]] = {}
    base = video(folder / CANARY).read_bytes()
    front = _front(folder / CANARY)
    for name, data, *allowed in (
        *_pointers(folder, base),
        *_not_videos(base),
        *_cut_and_flipped(base, front),
        *_false_headers(folder, base),
        *_many_tracks(),
    ):
        (folder / name).write_bytes(data)
        ends[name] = set(allowed)
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(base + _box(b"free", bytes([i])))  # no two files are equal
        ends[name] = {CLIPS}
    return ends | _odd_files(folder) | _encoded(folder)


def repeated(path: Path, size: str, num_frames: int, times: int, then: str = "") -> Path:
    """Write a film of one colour, `times` as long as what is encoded: kilobytes for gigapixels.

    With `then`, each repetition continues in another size.
    """
    units = annex_b(size, num_frames) + (annex_b(then, num_frames) if then else b"")
    raw = path.with_name(path.name + ".h264")
    raw.write_bytes(units * times)
    ffmpeg("-f", "h264", "-r", 25, "-i", f"file:{raw}", "-c", "copy", f"file:{path}")
    raw.unlink()
    return path


@cache
def annex_b(size: str, num_frames: int) -> bytes:
    picture = ("-f", "lavfi", "-i", f"color=gray:s={size}:r=25", "-frames:v", num_frames)
    small = ("-c:v", "libx264", "-preset", "ultrafast", "-x264-params", "cabac=1")
    return ffmpeg(*picture, *small, "-pix_fmt", "yuv420p", "-f", "h264", "-")


def mutants(path: Path, count: int, seed: int) -> Iterator[bytes]:
    """Yield the bytes of a file with a few of them changed, most often near its start."""
    draw, whole = random.Random(seed), path.read_bytes()
    for _ in range(count):
        data = bytearray(whole)
        reach = draw.choice((300, 1000, len(data)))
        for _ in range(draw.choice((1, 2, 5, 20, 200))):
            at = draw.randrange(4, min(reach, len(data)))
            data[at] = draw.choice((draw.randrange(256), 255, 0, data[at] ^ 1))
        yield bytes(data if draw.random() < 0.8 else data[: draw.randrange(len(data))])


_Made = Iterator[tuple[object, ...]]


def _pointers(folder: Path, base: bytes) -> _Made:
    """Files that refer to another file for their content."""
    for kind, target in (("absolute", f"file://{folder}/{CANARY}"), ("relative", CANARY)):
        hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"
        yield f"hls-{kind}.mp4", hls.encode(), "PLAYLIST"
        concat = f"ffconcat version 1.0\nfile '{target.replace('file://', 'file:')}'\n"
        yield f"concat-{kind}.mp4", concat.encode(), "PLAYLIST"
    url = f"file://{folder}/{CANARY}"
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
        ' profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"'
        ' mediaPresentationDuration="PT2S" minBufferTime="PT1S"><Period><AdaptationSet'
        ' mimeType="video/mp4"><Representation id="0" bandwidth="9" codecs="avc1">'
        f"<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    yield "dash.mp4", mpd.encode(), "PLAYLIST"
    yield "smil.mp4", f'<smil><body><video src="{url}"/></body></smil>'.encode(), "PLAYLIST"
    sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n"
    yield "sdp.mp4", sdp.encode(), "PLAYLIST"
    yield "avisynth.mp4", f'DirectShowSource("{folder}/{CANARY}")\n'.encode(), "NOT_VIDEO"
    yield "vobsub.mp4", b"# VobSub index file, v7\nid: en, index: 0\n", "NOT_VIDEO"
    for kind, levels in (("absolute", 0), ("relative", 1)):
        data = _external(base, f"{folder}/{CANARY}", levels)
        yield f"dref-{kind}.mov", data, "CORRUPT"


def _external(mp4: bytes, target: str, levels: int) -> bytes:
    """Return a QuickTime file whose frames are in another file, by a Macintosh alias."""
    at = mp4.index(b"dref") - 4
    (size,) = struct.unpack_from(">I", mp4, at)
    path = target.encode() + b"\0" * (len(target) % 2)
    alias = bytes(10 + 1 + 27 + 12 + 1 + 63 + 16) + struct.pack(">HH", levels, levels)
    alias += bytes(16) + struct.pack(">HH", 2, len(path)) + path + struct.pack(">Hxx", 0xFFFF)
    entry = _box(b"alis", bytes(4) + alias)
    dref = _box(b"dref", struct.pack(">II", 0, 1) + entry)
    data = bytearray(mp4)
    data[at : at + size] = dref
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):  # each holds the next
        parent = mp4.rindex(name, 0, at) - 4
        struct.pack_into(">I", data, parent, _u32(mp4, parent) + len(dref) - size)
    return bytes(data)


def _not_videos(base: bytes) -> _Made:
    yield "empty.mp4", b"", "EMPTY"
    yield "text.mp4", b"just some words\n" * 50, "NOT_VIDEO"
    yield "random.avi", random.Random(7).randbytes(1 << 16), "NOT_VIDEO"
    yield "zeros.mp4", bytes(1 << 16), "NOT_VIDEO"
    yield "page.mp4", b"<html><title>403 Forbidden</title></html>\n", "NOT_VIDEO"
    yield "head-only.mp4", base[:32], "NOT_VIDEO", "TRUNCATED"
    yield "archive.mp4", b"PK\x03\x04" + bytes(100), "CONTAINER_DENIED"
    yield "art.ans", b"\x1b[31m\xdb\xdb\x1b[0m\r\n" * 40, "CONTAINER_DENIED"
    for name, options in (
        ("png.mp4", ("-c:v", "png", "-f", "image2pipe")),
        ("jpeg.mp4", ("-c:v", "mjpeg", "-f", "image2pipe", "-pix_fmt", "yuvj420p")),
        ("gif.mp4", ("-f", "gif")),
    ):
        picture = ("-f", "lavfi", "-i", PICTURE, "-frames:v", 1 if name != "gif.mp4" else 20)
        yield name, ffmpeg(*picture, *options, "-"), "CONTAINER_DENIED"


def _cut_and_flipped(back: bytes, front: bytes) -> _Made:
    """Damage to a file with its index after the frames, and to one with it before them."""
    for percent in (10, 30, 60, 90):
        yield f"cut{percent}-back.mp4", back[: len(back) * percent // 100], "TRUNCATED"
    start = front.index(b"mdat")
    for percent in (0, 30, 60, 90, 99):
        data = front[: start + (len(front) - start) * percent // 100]
        few = {CLIPS} if percent > 80 else {"CORRUPT", "TRUNCATED"}
        yield f"cut{percent}-front.mp4", data, *few
    yield "cut-header-front.mp4", front[: start // 2], "TRUNCATED"
    for seed in range(3):
        draw, data = random.Random(seed), bytearray(front)
        for _ in range(40):
            data[draw.randrange(start + 4, len(data))] ^= 1 << draw.randrange(8)
        yield f"flipped{seed}.mp4", bytes(data), CLIPS, "CORRUPT", "TRUNCATED"
        draw, data = random.Random(seed), bytearray(front)
        for _ in range(8):
            data[draw.randrange(32, start)] ^= 1 << draw.randrange(8)
        yield f"flipped-header{seed}.mp4", bytes(data), CLIPS, *DAMAGE
    yield "hole.mp4", front[:start] + bytes(len(front) - start), "NOT_VIDEO", "CORRUPT", "TRUNCATED"


DAMAGE = ("CORRUPT", "TRUNCATED", "NOT_VIDEO", "TOO_LONG", "TOO_SHORT", "TOO_LARGE_DIM")
DAMAGE += ("CODEC_DENIED", "NO_VIDEO_STREAM")


def _false_headers(folder: Path, base: bytes) -> _Made:
    """Headers that contradict the stream."""
    big = repeated(folder / "bomb.mp4", "8192x8192", 2, 100).read_bytes()
    yield "bomb.mp4", big, "TOO_LARGE_DIM"
    yield "claims-huge.mp4", _with_size(base, 16384, 16384), CLIPS, "TOO_LARGE_DIM"
    yield "claims-small.mp4", _with_size(big, 64, 48), "TOO_LARGE_DIM"
    grows = repeated(folder / "grows.ts", "64x48", 20, 1, then="128x96")
    yield "grows.ts", grows.read_bytes(), CLIPS
    grows = repeated(folder / "grows-huge.ts", "64x48", 2, 1, then="8192x8192")
    yield "grows-huge.ts", grows.read_bytes(), "TOO_LARGE_DIM"
    yield "fast.mp4", _with_clock(base, 2_000_000_000, 1), CLIPS
    yield "slow.mp4", _with_clock(base, 1, 512), "TOO_SHORT"


def _with_size(mp4: bytes, width: int, height: int) -> bytes:
    data = bytearray(mp4)
    struct.pack_into(">HH", data, mp4.index(b"avc1", mp4.index(b"stsd")) + 28, width, height)
    struct.pack_into(">HxxH", data, mp4.index(b"tkhd") + 80, width, height)
    return bytes(data)


def _with_clock(mp4: bytes, ticks_per_s: int, ticks_per_frame: int) -> bytes:
    data = bytearray(mp4)
    struct.pack_into(">I", data, mp4.index(b"mdhd") + 16, ticks_per_s)
    struct.pack_into(">I", data, mp4.index(b"stts") + 16, ticks_per_frame)
    data[mp4.index(b"edts") : mp4.index(b"edts") + 4] = b"free"
    return bytes(data)


def _many_tracks() -> _Made:
    """A Matroska file with very many tracks and no frame."""
    for count in (900, 20_000):
        entry = b"\xd7\x81\x01\x73\xc5\x81\x01\x83\x81\x01\x86\x86V_MJPG"
        tracks = _ebml(b"\x16\x54\xae\x6b", _ebml(b"\xae", entry) * count)
        head = _ebml(b"\x1a\x45\xdf\xa3", b"\x42\x82\x88matroska")
        cluster = _ebml(b"\x1f\x43\xb6\x75", b"\xe7\x81\0\xa3\x85\x81\0\0\x80\0")
        yield f"streams{count}.mkv", head + _ebml(b"\x18\x53\x80\x67", tracks + cluster), *DAMAGE


def _ebml(name: bytes, content: bytes) -> bytes:
    return name + (0x0100_0000_0000_0000 | len(content)).to_bytes(8, "big") + content


def _odd_files(folder: Path) -> dict[str, set[str]]:
    """Entries named like a video that are no regular files."""
    os.mkfifo(folder / "pipe.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "directory.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "linked-pipe.mp4").symlink_to("pipe.mp4")
    handle = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:  # an address may have 107 characters at most
        listener.bind(f"/proc/self/fd/{handle}/socket.mp4")
    os.close(handle)
    names = ("pipe", "device", "directory", "dangling", "loop", "linked-pipe", "socket")
    return {f"{name}.mp4": {"IO_PERMANENT"} for name in names}


def _encoded(folder: Path) -> dict[str, set[str]]:
    """Valid but rare files that ffmpeg can write."""
    x264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
    canary = folder / CANARY
    video(folder / "one-frame.mp4", num_frames=1)
    video(folder / "gap.mkv", *x264, *_times("N/12/TB+gte(N\\,10)*2592000/TB"))
    back = "setts=pts=(40-N)/12/TB:dts=(N-99)/12/TB"
    video(folder / "backwards.mkv", *_MJPEG, "-bsf:v", back)
    video(folder / "no-suffix", *x264, "-f", "mp4")
    video(folder / "wrong-suffix.avi", *x264, "-f", "matroska")
    video(folder / "video.txt", *x264, "-f", "mpegts")
    video(folder / "full-range.mkv", *_MJPEG)
    video(folder / "alpha.mov", "-c:v", "prores_ks", "-pix_fmt", "yuva444p10le")
    video(folder / "dot.mkv", "-c:v", "ffv1", picture="testsrc2=s=16x16:r=12,format=gray,crop=1:1")
    video(
        folder / "line.mkv", "-c:v", "ffv1", picture="testsrc2=s=64x48:r=12,format=gray,crop=64:1"
    )
    video(folder / "codec.mkv", "-c:v", "zmbv")
    video(folder / "wide-pixels.mp4", *x264, "-vf", "setsar=2")
    needle = (
        (folder / "wide-pixels.mp4")
        .read_bytes()
        .replace(b"pasp" + struct.pack(">II", 2, 1), b"pasp" + struct.pack(">II", 1, 65535))
    )
    (folder / "needle-pixels.mp4").write_bytes(needle)
    video(folder / "needle.mkv", "-c:v", "ffv1", picture="color=gray:s=32768x2:r=12")
    sound = ("-f", "lavfi", "-i", "sine=d=2")
    ffmpeg(*sound, "-c:a", "aac", folder / "sound.mp4")
    copied = ("-i", f"file:{canary}", "-c", "copy")
    early = (*copied, "-output_ts_offset", -0.5, "-avoid_negative_ts", "disabled")
    ffmpeg(*early, folder / "early.mp4")
    ffmpeg(*early, "-copyts", folder / "early.ts")
    one = ffmpeg(*copied, "-f", "mpegts", "-")
    (folder / "twice.ts").write_bytes(one * 2)
    (folder / ".words.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nwords\n")
    words = ("-f", "srt", "-i", folder / ".words.srt", "-map", 0, "-map", 1, "-c:s", "srt")
    attached = ("-attach", canary, "-metadata:s:t", "mimetype=application/x-truetype-font")
    ffmpeg(*copied[:2], *words, "-c:v", "copy", *attached, folder / "attached.mkv")
    _gab2(folder)
    colours = bytearray(video(folder / "colours.mov", "-c:v", "prores_ks").read_bytes())
    for frame in re.finditer(b"icpf", colours):
        colours[frame.start() + 20] = 200  # a colour matrix that is not in any standard
    (folder / "colours.mov").write_bytes(colours)
    if has_encoder("libtheora"):
        path = video(folder / "tables.ogv", "-c:v", "libtheora")
        before, mark, after = path.read_bytes().partition(b"\x82theora")
        path.write_bytes(before + mark + bytes(33) + after[33:])
    good = (
        "backwards.mkv", "no-suffix", "wrong-suffix.avi", "video.txt", "full-range.mkv", "early.ts",
        "alpha.mov", "dot.mkv", "line.mkv", "wide-pixels.mp4", "early.mp4", "twice.ts",
        "attached.mkv", "gab2.avi",
    )  # fmt: skip
    damaged = {"tables.ogv": {"CORRUPT"}} if has_encoder("libtheora") else {}
    return (
        damaged
        | {name: {CLIPS} for name in good}
        | {
            "one-frame.mp4": {"TOO_SHORT"},
            "colours.mov": {CLIPS, "CORRUPT"},
            "gap.mkv": {CLIPS},
            "codec.mkv": {"CODEC_DENIED"},
            "sound.mp4": {"NO_VIDEO_STREAM"},
            "needle-pixels.mp4": {"TOO_LARGE_DIM"},
            "needle.mkv": {"TOO_LARGE_DIM"},
        }
    )


_MJPEG = ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p")


def _times(expression: str) -> tuple[str, ...]:
    return ("-vf", f"setpts={expression}", "-vsync", "passthrough")


def _gab2(folder: Path) -> None:
    """Make an AVI whose subtitles are a playlist: readers may open the files that it names."""
    playlist = f"#EXTM3U\n#EXTINF:9,\nfile://{folder}/{CANARY}\n#EXT-X-ENDLIST\n".encode()
    (folder / ".words.raw").write_bytes(
        b"GAB2\0" + struct.pack("<HIHI", 2, 0, 0, len(playlist)) + playlist
    )
    words = ("-f", "u8", "-ar", 8000, "-ac", 1, "-i", folder / ".words.raw", "-c:a", "pcm_u8")
    options = (*words, "-map", 0, "-map", 1, "-c:v", "mpeg4", "-frames:v", 20)
    ffmpeg("-f", "lavfi", "-i", PICTURE, *options, folder / "gab2.avi")
    data = (folder / "gab2.avi").read_bytes()
    (folder / "gab2.avi").write_bytes(data.replace(b"auds", b"txts"))


def _front(path: Path) -> bytes:
    moved = path.with_name(".front.mp4")
    ffmpeg("-i", f"file:{path}", "-c", "copy", "-movflags", "+faststart", f"file:{moved}")
    return moved.read_bytes()


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def _u32(data: bytes, at: int) -> int:
    (value,) = struct.unpack_from(">I", data, at)
    return int(value)
