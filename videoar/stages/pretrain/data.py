"""Token stores of `pretrain`: which store is which, and all checks before the first step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from videoar.core.errors import ConfigError, ContractError, GateError, did_you_mean
from videoar.core.types import FileRef
from videoar.model.schedule import latent_frames
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.transformer.config import ModelConfig
from videoar.pipeline.stage import Inputs, RankContext
from videoar.storage.reader import key_value_metadata, read_footers
from videoar.storage.snapshot import Snapshot
from videoar.training.config import MAIN_STORE, Phase, PhaseStore, TransformerTraining
from videoar.training.data.mixture import TokenMixture
from videoar.training.data.token_loader import TokenLoader
from videoar.training.objective import scales_of
from videoar.training.transformer import Loader

_PARTS = {"old", "new"}
_SHAPE = ("t", "h", "w", "k")


@dataclass(frozen=True)
class TokenStore:
    """A token store and the shapes of its rows."""

    snapshot: Snapshot
    shapes: Mapping[str, frozenset[tuple[int, int, int, int]]]
    """Distinct (t, h, w, k) by split."""

    def shapes_of(self, split: str, part: PhaseStore) -> list[tuple[int, int, int, int]]:
        """Return the shapes of a split that a phase reads."""
        shapes = self.shapes.get(split, frozenset())
        return sorted(s for s in shapes if not part.grids or s[1:3] in part.grids)


def open_stores(inputs: Inputs, tokenizer: TokenizerConfig, digest: str) -> dict[str, TokenStore]:
    """Return the token stores of the stage by name.

    The tokenizer is compared in the footers of the files, which keep its digest when `compact`
    rewrites them; the snapshot's provenance would name the last stage only.

    Raises:
        ConfigError: see `split_by_seen`.
        ContractError: a file names another tokenizer or none, or rows have other bits.
        GateError: see `split_by_seen`.
    """
    snapshots = token_snapshots(inputs)
    if "seen" in inputs:
        if used := _PARTS & snapshots.keys():
            what = "is the name of a part of the port tokens, as there is a port seen"
            raise ConfigError(f"tokens.{min(used)}", what, "rename the port")
        snapshots |= split_by_seen(snapshots.pop(MAIN_STORE), inputs["seen"])
    return {
        name: _open_store(snapshot, inputs, tokenizer, digest)
        for name, snapshot in snapshots.items()
    }


def split_by_seen(tokens: Snapshot, seen: Snapshot) -> dict[str, Snapshot]:
    """Return the parts of a token store that an earlier training has and has not read.

    By files, as they are read: a file with a new clip among old ones is new. Files that both
    snapshots have are not opened.

    Returns:
        `old` and `new`, each with some of the files of `tokens`.

    Raises:
        ConfigError: no clip was seen: most likely they were cut in another way.
        GateError: all were seen, so there is nothing to learn.
    """
    shared = {file.sha256 for file in tokens.files} & {file.sha256 for file in seen.files}
    others = seen.with_files([file for file in seen.files if file.sha256 not in shared])
    ids = {row["clip_id"] for row in others.available_rows(["clip_id"])}

    def is_old(file: FileRef) -> bool:
        if file.sha256 in shared:
            return True
        return ids.issuperset(tokens.read_file(file, ["clip_id"])["clip_id"].to_pylist())

    files: dict[str, list[FileRef]] = {"old": [], "new": []}
    for file in tokens.files:
        files["old" if is_old(file) else "new"].append(file)
    if not files["new"]:
        what = f"all {tokens.rows} clips of {tokens.id} were seen before, in {seen.id}"
        raise GateError("pretrain.seen", what, "see the rejects of the stages before: no new clip")
    if not files["old"]:
        what = f"no file of {tokens.id} has only clips of {seen.id}"
        raise ConfigError("pretrain.seen", what, "cut and filter clips with the options of then")
    return {name: tokens.with_files(part) for name, part in files.items()}


def token_snapshots(inputs: Inputs) -> dict[str, Snapshot]:
    """Return the inputs at the ports `tokens` and `tokens.NAME` by the name of their store."""
    return {
        port.partition(".")[2] or MAIN_STORE: snapshot
        for port, snapshot in inputs.items()
        if port.partition(".")[0] == MAIN_STORE
    }


def _open_store(
    tokens: Snapshot, inputs: Inputs, tokenizer: TokenizerConfig, digest: str
) -> TokenStore:
    footers = read_footers(tokens.objects, tokens.files)
    for file, footer in zip(tokens.files, footers, strict=True):
        made_by = key_value_metadata(footer).get("tokenizer_digest")
        if made_by != digest:
            what = f"{file.key} was made by tokenizer {made_by}, not {digest}"
            hint = f"tokenize the clips again, by {inputs['tokenizer'].id}"
            raise ContractError(tokens.id, what, hint)
    shapes: dict[str, set[tuple[int, int, int, int]]] = {}
    for table in tokens.read(["split", *_SHAPE], footers=footers):
        columns = [table[name].to_pylist() for name in ("split", *_SHAPE)]
        for split, *shape in set(zip(*columns, strict=True)):
            shapes.setdefault(split, set()).add(tuple(shape))
    bits = {shape[3] for of_split in shapes.values() for shape in of_split}
    if bits - {tokenizer.num_bits}:
        what = f"rows have {sorted(bits)} bits per position, the tokenizer {tokenizer.num_bits}"
        raise ContractError(tokens.id, what)
    return TokenStore(tokens, {split: frozenset(own) for split, own in shapes.items()})


class StoreData:
    """The loaders of a rank, phase by phase; one per store.

    Args:
        stores: by name.
        training: phases and seed.
        rank: which slice of the batches to read.
    """

    def __init__(
        self, stores: Mapping[str, TokenStore], training: TransformerTraining, rank: RankContext
    ) -> None:
        self._stores, self._training, self._rank = stores, training, rank

    def check(self, cfg: ModelConfig) -> None:
        """Check all phases against the stores: before the first step, not hours later.

        Raises:
            ConfigError: names the option.
        """
        for number, phase in enumerate(self._training.phases):
            where = f"training.phases.{number}"
            for name in phase.stores:
                if name not in self._stores:
                    hint = did_you_mean(name, self._stores)
                    raise ConfigError(f"{where}.stores.{name}", "no such token store", hint)
            for name, part in self._parts(phase):
                self._check_store(where, name, part, phase, cfg)
            self._check_scales(f"{where}.scales", phase)
        if self._training.validation.patience and not any(
            self._stores[name].shapes_of("val", part)
            for phase in self._training.phases
            for name, part in self._parts(phase)
        ):
            what = "no store has rows of the split val"
            raise ConfigError(
                "training.validation.patience", what, "leave it out, or add val clips"
            )

    def _check_store(
        self, where: str, name: str, part: PhaseStore, phase: Phase, cfg: ModelConfig
    ) -> None:
        store = self._stores[name]
        shapes = store.shapes_of("train", part)
        if not shapes:
            grids = f" of the grids {list(part.grids)}" if part.grids else ""
            what = f"{store.snapshot.id} has no rows of the split train{grids}"
            raise ConfigError(f"{where}.stores.{name}", what)
        frames = phase.frames_of(name)
        if frames is not None:
            self._check_frames(f"{where}.num_frames", store, part, frames, cfg.time_stride)
        for grid in sorted({shape[1:3] for shape in shapes}):
            scales = scales_of(cfg, phase, grid)
            if len(scales) > cfg.max_scales:
                what = f"the grid {grid} of {store.snapshot.id} has {len(scales)} scales"
                hint = f"model.max_scales is {cfg.max_scales}: raise it, or give shorter scales"
                raise ConfigError(f"{where}.scales", what, hint)

    def _check_scales(self, where: str, phase: Phase) -> None:
        """Reject schedules that no row would use: of a mistyped grid, most likely."""
        read = {
            shape[1:3]
            for name, part in self._parts(phase)
            for shape in self._stores[name].shapes_of("train", part)
        }
        for scales in phase.scales:
            if scales[-1] not in read:
                what = f"a schedule ends with the grid {scales[-1]}, of which no row is read"
                raise ConfigError(where, what, f"the grids are {sorted(read)}")

    @staticmethod
    def _check_frames(
        where: str, store: TokenStore, part: PhaseStore, frames: int, time_stride: int
    ) -> None:
        try:
            needed = latent_frames(frames, time_stride)
        except ValueError as error:
            raise ConfigError(where, str(error)) from error
        shapes = store.shapes_of("train", part) + store.shapes_of("val", part)
        shortest = min(shape[0] for shape in shapes)
        if shortest < needed:
            what = (
                f"{frames} frames are {needed} latent frames, but {store.snapshot.id} has clips of"
                f" {shortest}"
            )
            hint = "lower it, give the store its own num_frames, or tokenize longer clips"
            raise ConfigError(where, what, hint)

    def _parts(self, phase: Phase) -> Iterator[tuple[str, PhaseStore]]:
        yield from phase.stores.items() or ((name, PhaseStore()) for name in self._stores)

    def train(self, phase: Phase) -> Loader:
        """Return the loader of a phase: of its store, or the mixture of several."""
        parts = dict(self._parts(phase))
        loaders = {name: self._loader(name, part, phase, "train") for name, part in parts.items()}
        if len(loaders) == 1:
            return next(iter(loaders.values()))
        weights = {name: part.weight for name, part in parts.items()}
        return TokenMixture(loaders, weights, self._training.seed)

    def held_out(self, phase: Phase) -> dict[str, TokenLoader]:
        """Return the loaders of the val rows of a phase by store; a store without any has none."""
        return {
            name: self._loader(name, part, phase, "val")
            for name, part in self._parts(phase)
            if self._stores[name].shapes_of("val", part)
        }

    def _loader(self, name: str, part: PhaseStore, phase: Phase, split: str) -> TokenLoader:
        return TokenLoader(
            self._stores[name].snapshot,
            part.batch_size or phase.batch_size,
            self._training.seed,
            self._rank.index,
            self._rank.world_size,
            split=split,
            grids=part.grids,
            prompt_of=self._training.prompt,
            verify=True,
        )
