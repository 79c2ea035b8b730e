"""Choose the video stream that a person who opens the file would see."""

from collections.abc import Container, Iterable

from av.stream import Disposition
from av.video.stream import VideoStream

_NO_FILM = (
    Disposition.attached_pic  # the cover of a song
    | Disposition.timed_thumbnails
    | Disposition.still_image
    | Disposition.dependent  # a layer that only adds to another stream
)


def choose_stream(streams: Iterable[VideoStream], allowed: Container[str]) -> VideoStream | None:
    """Return the stream to decode; None if there is no film, only covers and thumbnails.

    Args:
        streams: the video streams of a container.
        allowed: codecs that may be decoded. Others are chosen only if no stream has one of these,
            so that the error names them.
    """
    films = [stream for stream in streams if not stream.disposition & _NO_FILM]

    def rank(stream: VideoStream) -> tuple[bool, bool, bool, bool, int, int, int]:
        codec = stream.codec_context
        num_pixels = codec.width * codec.height if codec_name(stream) != "none" else 0
        num_frames = stream.metadata.get("NUMBER_OF_FRAMES", str(stream.frames))
        return (
            codec_name(stream) in allowed,
            num_pixels > 0,
            num_frames != "1",  # a cover that is not called one
            bool(stream.disposition & Disposition.default),
            num_pixels,
            stream.frames,
            -stream.index,
        )

    return max(films, key=rank, default=None)


def codec_name(stream: VideoStream) -> str:
    """Return the name of a stream's codec; `none` if FFmpeg has no decoder for it."""
    # PyAV returns None for these, contrary to its stubs
    codec = getattr(stream.codec_context, "codec", None)
    return codec.canonical_name if codec else "none"
