"""Check of the image or video of a request before its job is accepted."""

from videoar.core.errors import ConfigError, MediaError
from videoar.core.scratch import Scratch
from videoar.media.init_frames import decode_init
from videoar.media.process import Limits
from videoar.serving.errors import ApiError
from videoar.serving.service import ServedModel

# chosen: a photo or a few seconds of video take one second; less than what a client waits
_LIMITS = Limits(wall_s=20, cpu_s=20, memory_bytes=1 << 30)


def check_init(data: bytes, model: ServedModel, seconds: float) -> None:
    """Decode what a video of so many seconds begins with in the sandbox; frames are not kept.

    Raises:
        ApiError: 400, it cannot be used.
    """
    num_frames = round(seconds * model.rate_fps)
    with Scratch() as folder:
        path = folder / "input"
        path.write_bytes(data)
        try:
            decode_init(path.as_uri(), model.size_px, num_frames, model.rate_fps, _LIMITS)
        except (ConfigError, MediaError) as error:
            code = error.code.lower() if isinstance(error, MediaError) else "invalid_value"
            message = f"input_reference {error.what}"
            raise ApiError(400, message, code, param="input_reference") from error
