"""Worker of `score`: reads clips and runs networks. Imported when the stage runs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json
from videoar.core.settings import settings
from videoar.core.types import Row
from videoar.evaluation import i3d, measure, metric_names, reconstruction
from videoar.evaluation.extractor import Clip
from videoar.evaluation.measure import ReconstructionScores
from videoar.evaluation.scorecard import Lock, not_evaluated
from videoar.media.clip_reader import ClipReader
from videoar.media.transcode import encode_clips
from videoar.model.device import device
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.training.model_store import load_tokenizer

_EXAMPLE_CRF = 12  # chosen: visually lossless, so that an example shows the tokenizer, not H.264


class ScoreWorker:
    """Rows of `scores@1` for one set of samples.

    Args:
        store: where clips are read and example videos are written.
        seed: of the random feature network and of the bootstrap.
    """

    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._seed = seed
        self._read = ClipReader(store.objects)

    def close(self) -> None:
        """Close the sources that were read."""
        self._read.close()

    def sample_rows(self, samples: Sequence[Row], lock: Lock) -> list[Row]:
        """Return attribute accuracies, flickering and motion of generated clips."""
        scores = measure.SampleScores()
        for clip in self._clips(samples):
            scores.add(clip)
        return scores.rows("rendered", lock, self._seed)

    def distance_rows(
        self, samples: Sequence[Row], reference: Sequence[Row], floor: Sequence[Row], lock: Lock
    ) -> list[Row]:
        """Return the Frechet distances of samples, and of other real clips (the floor)."""
        sets = (samples, reference, floor)
        # devices round features differently: their distances must not pass for comparable
        lock = {**lock, "reference": _digest(reference), "device": device()}
        problem = measure.no_distance_reason([[row["num_frames"] for row in rows] for rows in sets])
        networks = {
            metric_names.FRECHET_RANDOM: partial(i3d.random_i3d, self._seed),
            metric_names.FVD: partial(i3d.load_i3d, settings().i3d_weights),
        }
        result: list[Row] = []
        for metric, load in networks.items():
            reason = problem
            try:
                network = None if reason else load()
            # weights that fail their check cost the row of FVD, with the reason, and not the other
            # scores
            except ConfigError as error:
                network, reason = None, str(error)
            if network is None:
                result.append(not_evaluated(metric, reason, lock=lock, higher_is_better=False))
                continue
            features = [measure.features_ND(network, self._clips(rows)) for rows in sets]
            full = {**lock, "network": network.digest()}
            result += measure.distance_rows(metric, *features, lock=full, seed=self._seed)
        return result

    def reconstruction_rows(
        self, tokenizer: Snapshot | None, clips: Sequence[Row], num_examples: int
    ) -> list[Row]:
        """Return the scores of clips that the tokenizer encodes and decodes.

        Args:
            tokenizer: snapshot of `models@1`; None: rows without values.
            clips: real clips.
            num_examples: reconstructions to store as videos, of the first one also each scale.
        """
        lock = {"reference": _digest(clips)}
        if tokenizer is None or not clips:
            missing = "tokenizer" if tokenizer is None else "clip in the reference split"
            return measure.reconstruction_not_evaluated(f"no {missing}", lock)
        network, _ = load_tokenizer(tokenizer, self._store, device())
        scores = ReconstructionScores()
        for i, (row, real) in enumerate(zip(clips, self._clips(clips), strict=True)):
            frames_THWC, _ = reconstruction.round_trip(network, real.frames, f"clip {real.id}")
            scores.add(real, frames_THWC)
            if i == 0 and num_examples:
                self._add_scales(scores, network, real)
            if i < num_examples:
                key = self._put(replace(real, frames=frames_THWC))
                # A clip that is a reference to its source has no video in the store yet.
                scores.add_example(real.id, row["video_key"] or self._put(real), key)
        return scores.rows(lock, self._seed)

    def _add_scales(
        self, scores: ReconstructionScores, network: VideoTokenizer, real: Clip
    ) -> None:
        """Store the reconstructions from the first 1, 2, ... all scales of a clip."""
        name = f"clip {real.id}"
        steps = reconstruction.per_scale_reconstructions(network, real.frames, name)
        sized = network.for_size(*real.frames.shape[1:3])
        for (height, width), step in zip(sized.cfg.scales, steps, strict=True):
            scores.add_scale(real.id, f"{height} x {width}", self._put(replace(real, frames=step)))

    @staticmethod
    def vbench_rows(lock: Lock) -> list[Row]:
        """Return the rows of the VBench aggregates."""
        return measure.vbench_rows(lock)

    def _clips(self, rows: Sequence[Row]) -> Iterator[Clip]:
        """Read the videos of rows of `samples@1` or `clips@1`, one at a time."""
        for row in rows:
            is_sample = "sample_id" in row
            yield Clip(
                id=row["sample_id" if is_sample else "clip_id"],
                frames=self._read(row),
                rate_fps=row["rate_fps"],
                text=row["prompt" if is_sample else "caption"] or "",
            )

    def _put(self, clip: Clip) -> str:
        """Write the video of a clip to the store; return its key."""
        (video,) = encode_clips([clip.frames], clip.rate_fps, crf=_EXAMPLE_CRF)
        return self._store.put_object(video, ".mp4").key


def _digest(clips: Sequence[Row]) -> str:
    """Return the digest of the content of clips: stored videos, or ids of references."""
    return digest_json([row["video_sha256"] or row["clip_id"] for row in clips])
