"""Map high dynamic range and wide gamut to BT.709: one table, applied by libavfilter's `haldclut`.

    R'G'B' of the source --transfer--> light, 1 is 100 cd/m2 --primaries--> light of BT.709
                         --curve--> 0 to 1 --BT.1886--> R'G'B' of the clip

Order, reference and curves are those of the usual ffmpeg command: `zscale` to linear light with
npl=100, `tonemap` with desat=0, `zscale` to BT.709. The wheels of PyAV have no zscale; a table of
colours needs none. It is applied to resized frames, so it costs by the pixels of a clip, not by
those of the source.

Sources: SMPTE ST 2084 (PQ); BT.2100 with its system gamma for 1000 cd/m2 (HLG); H.273 for
logarithmic transfers and for chromaticities.
"""

import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter

_OfArray = Callable[[np.ndarray], np.ndarray]
Curve = Literal["mobius", "hable", "reinhard", "clip"]
GAMUT = "gamut"
"""Takes the place of a curve for a source that only has wider primaries."""
_PEAK = 10.0  # 1000 cd/m2, the default of `tonemap`
_PEAKS = (1.01, 100.0)  # PQ ends at 10,000 cd/m2, and what a file says may be nonsense
_LEVEL = 7  # of the Hald image: 49 values per colour; 64 are not nearer to zscale
_FORMAT = "rgb48le"  # haldclut of FFmpeg 8 exchanges the colours of planar frames
# x and y of red, green and blue; all have the white point D65
_PRIMARIES: Mapping[int, tuple[float, ...]] = {
    ColorPrimaries.BT709: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    ColorPrimaries.BT2020: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    ColorPrimaries.SMPTE432: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    # the same colours for projectors, whose white is shown as D65
    ColorPrimaries.SMPTE431: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])


def mapping_of(frame: av.VideoFrame, curve: Curve | None) -> str | None:
    """Return the curve that a frame needs, `GAMUT` if it has wider primaries only, else None.

    The primaries of standard definition count as those of BT.709, as players show them.
    """
    if curve is None or frame.format.name.startswith(("pal", "gray")):
        return None
    if frame.color_trc in _TO_LIGHT:
        return curve
    primaries = frame.color_primaries
    is_wide = primaries in _PRIMARIES and primaries != ColorPrimaries.BT709
    return GAMUT if is_wide else None


def peak_of(frame: av.VideoFrame) -> float:
    """Return the light of a source that becomes white, 1 is 100 cd/m2; brighter light does too.

    Source: `ff_determine_signal_peak` of FFmpeg: the brightest pixel that the file announces
    (MaxCLL, CTA-861.3), else the brightest light of the display on which it was mastered (SMPTE
    ST 2086).
    """
    said = frame.side_data
    max_cll, _ = struct.unpack("=2I", said.get("CONTENT_LIGHT_LEVEL") or bytes(8))  # type: ignore[arg-type]
    # AVMasteringDisplayMetadata: eight fractions of chromaticities, darkest, brightest; two flags
    display = struct.unpack("=22i", said.get("MASTERING_DISPLAY_METADATA") or bytes(88))  # type: ignore[arg-type]
    number, per, has_light = display[18], display[19], display[21]
    peak = max_cll / 100
    if not peak and has_light and per:
        peak = number / per / 100
    low, high = _PEAKS
    return min(high, max(low, peak)) if peak > 0 else _PEAK


class ToneMapper:
    """Maps resized frames of one source, all of one size.

    Args:
        like: a frame of the source.
        mapping: from `mapping_of`.
    """

    def __init__(self, like: av.VideoFrame, mapping: str) -> None:
        self.mapping = mapping
        self._table = _table(like.color_trc, like.color_primaries, mapping, peak_of(like))
        n = np.arange(len(self._table))
        levels = self._table[n, n, n].mean(axis=-1) / 257
        self.mapped_luma = (
            np.interp(np.arange(256), 255 * n / n[-1], levels).round().astype(np.uint8)
        )
        """What each level of grey becomes, uint8 [256]: luma frames have no colour."""
        self._unpack, self._pack = VideoReformatter(), VideoReformatter()
        self._graph: Graph | None = None

    def rgb(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Map a frame of 16-bit RGB; return it as rgb24."""
        packed = self._unpack.reformat(frame, format=_FORMAT, threads=1)
        packed.pts = None
        if self._graph is None:
            self._graph = self._configured(packed)
        self._input.push(packed)
        return self._pack.reformat(self._graph.vpull(), format="rgb24", threads=1)

    def _configured(self, frame: av.VideoFrame) -> Graph:
        graph = Graph()
        side = _LEVEL**3
        # red varies fastest along the rows of a Hald image
        image = np.ascontiguousarray(self._table.transpose(2, 1, 0, 3)).reshape(side, side, 3)
        table = av.VideoFrame.from_ndarray(image, format=_FORMAT)
        self._input, colours = (
            graph.add_buffer(
                width=f.width, height=f.height, format=f.format, time_base=Fraction(1, 25)
            )
            for f in (frame, table)
        )
        mapper = graph.add("haldclut", "clut=first:threads=1")
        output = graph.add("buffersink")
        self._input.link_to(mapper, 0, 0)
        colours.link_to(mapper, 0, 1)
        mapper.link_to(output)
        graph.configure()
        colours.push(table)
        colours.push(None)  # the end: haldclut does not wait for another table
        return graph


def _table(transfer: int, primaries: int, mapping: str, peak: float) -> np.ndarray:
    """Return the colour that each colour becomes: uint16 [N, N, N, 3], indexed by R'G'B'."""
    grid = np.linspace(0, 1, _LEVEL**2)
    coded = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), axis=-1)
    to_light = _TO_LIGHT.get(transfer, _display)
    # a source that announces PQ or HLG alone has the primaries of BT.2100
    wide = _PRIMARIES.get(primaries, _PRIMARIES[ColorPrimaries.BT2020])
    to_bt709 = np.linalg.solve(_to_xyz(_PRIMARIES[ColorPrimaries.BT709]), _to_xyz(wide))
    light = to_light(coded) @ to_bt709.T
    if mapping != GAMUT:
        # by the largest colour, which keeps the hue
        signal = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
        light *= _CURVES[mapping](signal, peak) / signal
    table: np.ndarray = np.round(np.clip(light, 0, 1) ** (1 / 2.4) * 65535).astype(np.uint16)
    return table


def _to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    """Return the matrix from linear RGB with white point D65 to XYZ."""
    x, y = np.array(primaries).reshape(3, 2).T
    colours = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([0.3127, 0.3290, 1 - 0.3127 - 0.3290]) / 0.3290
    matrix: np.ndarray = colours * np.linalg.solve(colours, white)
    return matrix


def _display(coded: np.ndarray) -> np.ndarray:
    light: np.ndarray = coded**2.4  # BT.1886
    return light


def _pq(coded: np.ndarray) -> np.ndarray:
    power = coded ** (32 / 2523)
    ratio = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
    light: np.ndarray = 100 * ratio ** (16384 / 2610)
    return light


def _hlg(coded: np.ndarray) -> np.ndarray:
    bright = np.exp((coded - 0.55991073) / 0.17883277) + 0.28466892
    scene = np.where(coded <= 0.5, coded**2 / 3, bright / 12)
    luma = np.maximum(scene @ _BT2020_LUMA, 1e-9)[..., None]
    light: np.ndarray = 10 * scene * luma**0.2
    return light


def _log(decades: float) -> _OfArray:
    return lambda coded: np.where(coded > 0, 10 ** (decades * (coded - 1)), 0)


def _mobius(signal: np.ndarray, peak: float, linear: float = 0.3) -> np.ndarray:
    a = -(linear**2) * (peak - 1) / (linear**2 - 2 * linear + peak)
    b = (linear**2 - 2 * linear * peak + peak) / (peak - 1)
    bent = (b**2 + 2 * b * linear + linear**2) / (b - a) * (signal + a) / (signal + b)
    return np.where(signal <= linear, signal, bent)


def _hable(signal: np.ndarray | float) -> np.ndarray:
    over, under = signal * (signal * 0.15 + 0.05) + 0.004, signal * (signal * 0.15 + 0.5) + 0.06
    return np.asarray(over / under - 0.02 / 0.3)


_TO_LIGHT: Mapping[int, _OfArray] = {
    ColorTrc.SMPTE2084: _pq,
    ColorTrc.ARIB_STD_B67: _hlg,
    ColorTrc.LOG: _log(2),
    ColorTrc.LOG_SQRT: _log(2.5),
}
_CURVES: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "mobius": _mobius,
    "hable": lambda signal, peak: _hable(signal) / _hable(peak),
    "reinhard": lambda signal, peak: signal / (signal + 1) * (peak + 1) / peak,
    "clip": lambda signal, _: signal,
}
