"""Find clips that repeat a better one, by what they show: in one pass, from the best clip down.

Clips are taken in order, best first. A clip is kept unless most of its frames are frames of kept
clips of one source. So of a chain a-b-c whose ends differ only b is rejected, and the result
depends on the clips alone, not on their files.

Only kept clips that share a key with a clip are compared with it (`hash_keys`), frame by frame
(`hash_matching`). Measured shares, time and memory are in `benchmarks/results/near_duplicates.md`.

Axes: N clips, S = 2 scales, T frames, P pairs of clips.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from videoar.curation.candidates import Candidates
from videoar.curation.hash_keys import Chains, groups, sharing_within
from videoar.curation.hash_matching import FULL, Side, agreement

DUPLICATE_EXACT = "DUPLICATE_EXACT"
DUPLICATE_NEAR = "DUPLICATE_NEAR"
DUPLICATE_MIRRORED = "DUPLICATE_MIRRORED"
DUPLICATE_SEMANTIC = "DUPLICATE_SEMANTIC"
REASONS = (DUPLICATE_EXACT, DUPLICATE_NEAR, DUPLICATE_MIRRORED, DUPLICATE_SEMANTIC)
_SHOWN = 0.6  # chosen: how well clips of one source must show the frames of a copy, 1 is equal
_FEWEST = 3  # chosen: frames that are evidence
_BLOCK = 256  # chosen: clips decided together
_PAIRS = 2048  # chosen: pairs compared together; 60 MB


def find_repeats(
    clips: Candidates, order: np.ndarray, hamming: int, masks: Sequence[int]
) -> dict[int, tuple[str, int]]:
    """Decide which clips repeat a better one.

    Args:
        clips: all candidates.
        order: their positions, best first; a clip's place in it is its rank.
        hamming: number of differing bits from which on two frames do not match.
        masks: bits in which the hashes of a copy differ, one search for each: 0 finds plain copies,
            `MIRROR` mirrored ones.

    Returns:
        Rank of each repeating clip, with its reason and the rank of the kept clip.
    """
    ids = clips.rows["clip_id"][order]
    _, first, of_id = np.unique(ids, return_index=True, return_inverse=True)
    first_of = first[of_id]
    unique = np.flatnonzero(first_of == np.arange(len(ids)))
    repeats: dict[int, tuple[str, int]] = {}
    for mask in masks:
        reason = DUPLICATE_MIRRORED if mask else DUPLICATE_NEAR
        search = _Search(clips, order, hamming, mask)
        for start in range(0, len(unique), _BLOCK):
            found = search.decide(unique[start : start + _BLOCK])
            repeats |= {rank: (reason, kept) for rank, kept in found}
        unique = unique[~np.isin(unique, np.fromiter(repeats, np.int64))]
    for rank in np.flatnonzero(first_of != np.arange(len(ids))).tolist():
        best = int(first_of[rank])
        repeats[rank] = repeats.get(best, (DUPLICATE_EXACT, best))
    return repeats


class _Search:
    """Decides on clips from the best to the worst; chains those it keeps by their keys."""

    def __init__(self, clips: Candidates, order: np.ndarray, hamming: int, mask: int) -> None:
        self._clips, self._order = clips, order
        self._hamming, self._mask = hamming, np.uint64(mask)
        self._chains = Chains()

    def decide(self, block: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield those of the next best clips that repeat a kept one, and that one.

        Args:
            block: their ranks, rising.
        """
        hashes = self._side(block).hashes.reshape(len(block), -1)
        wanted = np.where(hashes, hashes ^ self._mask, 0)
        rows, kept = self._chains.sharing(wanted)
        agreement = self._agreement(block[rows], kept)
        best = np.full(len(block), -1)
        for row, of_row in groups(rows):
            best[row] = self._repeated(block[row], kept[of_row], agreement[of_row])
        # a clip may also repeat one of this block, unless that one repeats another
        undecided = np.flatnonzero(best < 0)
        pairs = sharing_within(wanted[undecided], hashes[undecided])
        later, earlier = (undecided[of_pair] for of_pair in pairs)
        inside = self._agreement(block[later], block[earlier])
        bounds = np.searchsorted(rows, np.arange(len(block) + 1))
        for row, of_row in groups(later):
            is_kept = best[earlier[of_row]] < 0
            before = slice(bounds[row], bounds[row + 1])
            best[row] = self._repeated(
                block[row],
                np.concatenate([kept[before], block[earlier[of_row][is_kept]]]),
                np.concatenate([agreement[before], inside[of_row][is_kept]]),
            )
        is_kept = best < 0
        self._chains.add(block[is_kept], hashes[is_kept])
        yield from zip(block[~is_kept].tolist(), best[~is_kept].tolist(), strict=True)

    def _repeated(self, clip: int, kept: np.ndarray, agreement: np.ndarray) -> int:
        """Return the kept clip that shows most of a clip if its source shows enough, else -1."""
        frames = int(np.count_nonzero(self._clips.hashes[self._order[clip], 0]))
        needed = _SHOWN * max(_FEWEST, frames) * FULL
        # where a copy begins elsewhere, two clips of the source show the parts of one of the copy
        kept, agreement = kept[is_near := agreement.any(axis=1)], agreement[is_near]
        sources = self._clips.rows["source_id"][self._order[kept]]
        for source in np.unique(sources):
            of_source = sources == source
            if agreement[of_source].max(axis=0).sum() >= needed:
                return int(kept[of_source][agreement[of_source].sum(axis=1).argmax()])
        return -1

    def _side(self, ranks: np.ndarray) -> Side:
        places = self._order[ranks]
        clips = self._clips
        return Side(clips.hashes[places], clips.chroma[places], clips.rows["source_id"][places])

    def _agreement(self, copies: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Return how well each frame of each copy agrees with the kept clip: [P, T]."""
        parts = [np.empty((0, self._clips.hashes.shape[2]), np.int16)]
        for start in range(0, len(copies), _PAIRS):
            one, two = (self._side(ranks[start:][:_PAIRS]) for ranks in (copies, kept))
            parts.append(agreement(one, two, self._hamming, self._mask))
        return np.concatenate(parts)
