"""Draw how a clip was made: frames of its source as ffmpeg shows them, above those of the clip.

The program ffmpeg reads the source, not our decoder, so that each checks the other.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from videoar.contracts.names import CLIPS
from videoar.core.errors import ConfigError, VideoARError
from videoar.core.types import Row
from videoar.media.clip_reader import ClipReader
from videoar.records.names import find_snapshot
from videoar.storage.store import Store

_FRAMES = 6
_HEIGHT_PX, _MAX_WIDTH_PX, _GAP_PX, _LINE_PX = 160, 320, 8, 18
_BOX, _TEXT, _GROUND = (255, 0, 80), (20, 20, 20), (255, 255, 255)


def strip(store: Store, name: str, out: Path) -> dict[str, Any]:
    """Write a PNG of a clip beside its source, with how it was made; return that, too.

    The red frame is `crop_box`. A clip whose source cannot be read is drawn alone.

    Raises:
        SnapshotNotFoundError: nothing in the store has this name.
        ConfigError: it is no clip.
        MediaError, StorageError: the clip cannot be read.
    """
    row = _clip(store, name)
    times_us = row["frame_times_us"]
    picked = np.unique(np.linspace(0, len(times_us) - 1, _FRAMES).round()).astype(int).tolist()
    size_px = _drawn_size(row["src_height_px"], row["src_width_px"])
    read = ClipReader(store.objects)
    try:
        frames = read(row)[picked]
        try:
            some = {**row, "frame_times_us": [times_us[i] for i in picked]}
            source, error = read.as_displayed(some, size_px), None
        except VideoARError as failure:
            source, error = None, failure.what
    finally:
        read.close()
    made = {**_made(row), "source_not_read": error}
    clip_px = _drawn_size(row["height_px"], row["width_px"])
    clip = [np.asarray(Image.fromarray(frame).resize(clip_px[::-1])) for frame in frames]
    shown = [] if source is None else [_boxed(frame, row) for frame in source]
    lines = [f"{key}: {value}" for key, value in made.items() if value is not None]
    image = _sheet(lines, [shown, clip])
    partial = out.with_name(f"{out.name}.partial")
    image.save(partial, format="PNG")
    partial.replace(out)
    return {**made, "out": str(out)}


def _clip(store: Store, name: str) -> Row:
    snapshot = find_snapshot(store, name)
    tables = snapshot.read_available() if snapshot.contract == CLIPS else ()
    for table in tables:
        rows = table.filter(pc.starts_with(table["clip_id"], name)).to_pylist()
        if rows:
            return dict(rows[0])
    raise ConfigError(name, "is no clip", "give the clip_id of a row: videoar show clips")


def _made(row: Row) -> Row:
    """Return the columns that say how a clip was made, in words of people."""
    turn = f"{row['rotation_deg']} degrees" if row["rotation_deg"] else "none"
    bars = row["active_box"] and "inside the bars: {2}x{3} at {0},{1}".format(*row["active_box"])
    box = row["crop_box"] and "{2}x{3} at {0},{1}".format(*row["crop_box"])
    combed = row["combed_frac"]
    return {
        "clip": row["clip_id"],
        "source": f"{row['source_name']}, {row['src_width_px']}x{row['src_height_px']}",
        "colour": "/".join(
            str(row[f"color_{part}"] or "?")
            for part in ("primaries", "transfer", "matrix", "range")
        ),
        "orientation": turn + (", mirrored" if row["is_mirrored"] else ""),
        "crop": f"{box or '?'} ({bars or 'bars not looked for'})",
        "tone_map": row["tone_map"] or "none",
        "deinterlace": f"{row['deinterlacer'] or 'none'} ({combed or 0:.0%} of frames combed)",
        "resampling": f"{row['resampling']} to {row['width_px']}x{row['height_px']}",
        "cut_in": row["cut_in"],
        "span_s": [row["span_start_us"] / 1e6, row["span_end_us"] / 1e6],
    }


def _drawn_size(height: int, width: int) -> tuple[int, int]:
    scale = min(_HEIGHT_PX / height, _MAX_WIDTH_PX / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _boxed(frame: np.ndarray, row: Row) -> np.ndarray:
    image = Image.fromarray(frame)
    if row["crop_box"] is not None:
        scale = image.width / row["src_width_px"]
        left, top, width, height = (length * scale for length in row["crop_box"])
        corners = (left, top, left + width - 1, top + height - 1)
        ImageDraw.Draw(image).rectangle(corners, outline=_BOX, width=2)
    return np.asarray(image)


def _sheet(lines: list[str], rows: list[list[np.ndarray]]) -> Image.Image:
    """Draw lines of text, and below them rows of pictures in common columns."""
    rows = [row for row in rows if row]
    column = _GAP_PX + max(picture.shape[1] for row in rows for picture in row)
    top = _GAP_PX + _LINE_PX * len(lines)
    height = top + sum(row[0].shape[0] + _GAP_PX for row in rows)
    font = ImageFont.load_default(size=14)
    width = max(column * max(map(len, rows)), *(int(font.getlength(line)) for line in lines))
    sheet = Image.new("RGB", (width + _GAP_PX, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((_GAP_PX, _GAP_PX // 2 + number * _LINE_PX), line, fill=_TEXT, font=font)
    for row in rows:
        for number, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (_GAP_PX + number * column, top))
        top += row[0].shape[0] + _GAP_PX
    return sheet
