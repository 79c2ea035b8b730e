"""Pictures that are not what a viewer sees are named."""

import pytest

from tests.support.video_files import ffmpeg
from videoar.media.scan import ScanPlan, scan

PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=0.4,format=rgba", "-threads", 1)
HALF = ("-vf", "format=yuva444p,geq=lum=lum(X\\,Y):cb=128:cr=128:a=255*gt(X\\,48)")
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
X265 = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params")
X265 += ("log-level=none:pools=none:interlace=tff",)
STEREO = ("-x264-params", "frame-packing=3")
ALPHA_VP9 = ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-cpu-used", 8)


def box(kind, *content):
    data = b"".join(content)
    return (8 + len(data)).to_bytes(4, "big") + kind + data


def of_a_sphere(data):
    """Add the box `sv3d` of an equirectangular picture to the sample entry of an MP4."""
    equi = box(b"proj", box(b"prhd", bytes(16)), box(b"equi", bytes(20)))
    added = box(b"sv3d", box(b"svhd", bytes(5)), equi)
    at = data.index(b"avcC") - 4
    data = bytearray(data[:at] + added + data[at:])
    for kind in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        place = data.rindex(kind, 0, at) - 4
        size = int.from_bytes(data[place : place + 4], "big") + len(added)
        data[place : place + 4] = size.to_bytes(4, "big")
    return bytes(data)


def metadata_of(path):
    plan = {"num_frames": 1, "size_px": ((64, 96),), "find_shots": False, "max_clips": 99}
    return list(scan(path, ScanPlan(deinterlace="off", **plan)))[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "change", "kind"),
    [
        ("a.mp4", X264, None, None),
        ("a.mp4", X264, of_a_sphere, "spherical"),
        ("a.ts", (*X264, *STEREO), None, "stereo"),
        ("a.mkv", (*X264, "-metadata:s:v:0", "stereo_mode=top_bottom"), None, "stereo"),
        ("a.mov", ("-c:v", "qtrle", "-pix_fmt", "argb"), None, None),
        ("a.mov", (*HALF, "-c:v", "qtrle", "-pix_fmt", "argb"), None, "transparent"),
        ("a.mov", (*HALF, "-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"), None, "transparent"),
        ("a.mp4", ("-vf", "separatefields", *X265), None, "field"),
        ("a.webm", (*HALF, *ALPHA_VP9), None, "transparent"),
    ],
)
def test_a_picture_that_is_not_what_a_viewer_sees_is_named(tmp_path, name, options, change, kind):
    path = tmp_path / name
    ffmpeg(*PICTURE, *options, path)
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    assert metadata_of(path).picture_kind == kind
