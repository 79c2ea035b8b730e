"""Worker of `score`: reconstructs real clips with the tokenizer. Imported when the stage runs."""

from collections.abc import Sequence
from dataclasses import replace

from videoar.core.types import Row
from videoar.evaluation import reconstruction
from videoar.evaluation.extractor import Clip
from videoar.evaluation.reconstruction_scores import ReconstructionScores
from videoar.media.clip_reader import ClipReader
from videoar.media.transcode import encode_clips
from videoar.model.device import device
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.training.model_store import load_tokenizer

_EXAMPLE_CRF = 12  # chosen: visually lossless, so that an example shows the tokenizer, not H.264


class ReconstructionWorker:
    """Encodes and decodes clips.

    Args:
        store: where clips are read and example videos are written.
        tokenizer: snapshot of `models@1`.
    """

    def __init__(self, store: Store, tokenizer: Snapshot) -> None:
        self._store = store
        self._read = ClipReader(store.objects)
        self._network, _ = load_tokenizer(tokenizer, store, device())

    def close(self) -> None:
        """Close the sources that were read."""
        self._read.close()

    def scores(self, clips: Sequence[Row], num_examples: int) -> ReconstructionScores:
        """Return the scores of clips.

        Args:
            clips: rows of `clips@1`.
            num_examples: reconstructions to store as videos, of the first one also each scale.
        """
        scores = ReconstructionScores()
        for i, row in enumerate(clips):
            real = Clip(row["clip_id"], self._read(row), row["rate_fps"], row["caption"] or "")
            name = f"clip {real.id}"
            frames_THWC, _ = reconstruction.round_trip(self._network, real.frames, name)
            scores.add(real, frames_THWC)
            if i == 0 and num_examples:
                self._add_scales(scores, real)
            if i < num_examples:
                key = self._put(replace(real, frames=frames_THWC))
                # A clip that is a reference to its source has no video in the store yet.
                scores.add_example(real.id, row["video_key"] or self._put(real), key)
        return scores

    def _add_scales(self, scores: ReconstructionScores, real: Clip) -> None:
        """Store the reconstructions from the first 1, 2, ... all scales of a clip."""
        name = f"clip {real.id}"
        steps = reconstruction.per_scale_reconstructions(self._network, real.frames, name)
        sized = self._network.for_size(*real.frames.shape[1:3])
        for (height, width), step in zip(sized.cfg.scales, steps, strict=True):
            scores.add_scale(real.id, f"{height} x {width}", self._put(replace(real, frames=step)))

    def _put(self, clip: Clip) -> str:
        """Write the video of a clip to the store; return its key."""
        (video,) = encode_clips([clip.frames], clip.rate_fps, crf=_EXAMPLE_CRF)
        return self._store.put_object(video, ".mp4").key
