"""Bad inputs of `pretrain`, each an error with a type and a remedy before the first step."""

import json

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from tests.support.loop_rank import MemoryRank, commit
from tests.support.token_tables import pretrain_inputs
from videoar.core.errors import ConfigError, ContractError, GateError
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.pipeline.context import StageContext
from videoar.stages.pretrain.stage import PretrainConfig, PretrainStage
from videoar.storage.store import open_store
from videoar.training.model_store import publish_model

# Each test runs a whole stage or model.
pytestmark = pytest.mark.slow

PHASE = {"steps": 2, "batch_size": 2}
TRAINING = {"phases": [PHASE], "validation": {"points": 0}}
SEVEN_SCALES = [[1, 1], [1, 2], [2, 2], [2, 3], [3, 3], [3, 4], [4, 4]]


class Run:
    """A training of two steps that cases spoil: its inputs, options, and rank."""

    def __init__(self, folder):
        self.store = open_store((folder / "store").as_uri())
        self.inputs, self.rank = pretrain_inputs(self.store), MemoryRank(folder / "rank")
        self.options = {"training": TRAINING}

    def start(self):
        stage = PretrainStage(PretrainConfig(**self.options))
        return stage.run(self.inputs, StageContext(self.store), self.rank)

    def phase(self, **changes):
        self.options = {"training": {**TRAINING, "phases": [{**PHASE, **changes}]}}

    def model(self, **changes):
        self.options = {"training": TRAINING, "model": changes}

    def tokens(self, metadata=None, **columns):
        """Replace values of columns, or the key-value metadata, of all tokens."""
        table = self.inputs["tokens"].table()
        rows = [{**row, **columns} for row in table.to_pylist()]
        other = pa.Table.from_pylist(rows, schema=table.schema)
        other = other.replace_schema_metadata(metadata or self.metadata(self.inputs["tokenizer"]))
        self.inputs["tokens"] = commit(self.store, "other", "tokens@1", other)

    def renumber(self, first):
        """Replace the ids of all clips."""
        table = self.inputs["tokens"].table()
        rows = [{**r, "clip_id": f"{first + i:032x}"} for i, r in enumerate(table.to_pylist())]
        other = pa.Table.from_pylist(rows, schema=table.schema)
        other = other.replace_schema_metadata(self.metadata(self.inputs["tokenizer"]))
        self.inputs["tokens"] = commit(self.store, "other", "tokens@1", other)

    def metadata(self, tokenizer):
        digest = tokenizer.table(["digest"])["digest"][0].as_py()
        return {"tokenizer_digest": digest, "layout_version": "1"}

    def tokenizer(self, **changes):
        """Publish another tokenizer."""
        net = VideoTokenizer(TOKENIZERS["tiny"].model_copy(update=changes))
        row = publish_model(
            net, self.store, weights=net.state_dict(), step=0, metrics={}, history=[]
        )
        return commit(self.store, "second", "models@1", row)

    def trained(self, **options):
        """Train a model to start from, on another rank."""
        config = PretrainConfig(training=TRAINING, **options)
        rank = MemoryRank(self.rank.scratch.parent / "earlier")
        rows = PretrainStage(config).run(self.inputs, StageContext(self.store), rank).rows
        return commit(self.store, "start", "models@1", rows), rank


def other_tokenizer(run):
    run.inputs["tokenizer"] = run.tokenizer(base_width=8)


def tokens_without_tokenizer(run):
    run.tokens(metadata={"layout_version": "1"})


def other_bits(run):
    run.inputs["tokenizer"] = run.tokenizer(num_bits=4)
    run.tokens(run.metadata(run.inputs["tokenizer"]))


def no_training_rows(run):
    run.tokens(split="val")


def model_of_other_bits(run):
    run.model(num_bits=4)


def model_of_another_time_stride(run):
    run.model(time_stride=2)


def more_scales_than_embeddings(run):
    run.model(max_scales=6)
    run.options["training"] = {
        "phases": [{**PHASE, "scales": [SEVEN_SCALES]}], "validation": {"points": 0}
    }  # fmt: skip


def tokenizer_of_more_scales_than_embeddings(run):
    scales = tuple(map(tuple, SEVEN_SCALES))
    run.inputs["tokenizer"] = run.tokenizer(scales=scales)
    run.tokens(run.metadata(run.inputs["tokenizer"]))
    run.model(max_scales=6)


def too_many_frames(run):
    run.phase(num_frames=65)


def odd_frames(run):
    run.phase(num_frames=4)


def indivisible_batch(run):
    run.options["resources"] = {"workers": 4}


def unknown_store(run):
    run.phase(stores={"tokns": {}})


def no_rows_of_a_grid(run):
    run.phase(stores={"tokens": {"grids": [[9, 9]]}})


def scales_of_no_grid(run):
    run.phase(scales=[[[1, 1], [8, 8]]])


def two_schedules_of_a_grid(run):
    run.phase(scales=[[[1, 1], [4, 4]], [[2, 2], [4, 4]]])


def no_scales(run):
    run.model(scales=[])


def no_scales_of_a_phase(run):
    run.phase(scales=[[]])


def patience_without_val_rows(run):
    run.options = {"training": {"phases": [PHASE], "validation": {"patience": 1}}}


def beta_above_1(run):
    run.options = {"training": {**TRAINING, "optimizer": {"betas": [0.9, 1.5]}}}


def seed_of_more_than_63_bits(run):
    run.options = {"training": {**TRAINING, "seed": 2**63}}


def huge_depth(run):
    run.model(depth=10**6)


def huge_layers(run):
    run.model(depth=1000, width=65_536)


def no_text_encoder(run):
    run.options |= {"text_encoder": str(run.rank.scratch / "none")}


def start_of_another_depth(run):
    run.inputs["start"], _ = run.trained(model={"depth": 3})


def start_of_another_tokenizer(run):
    run.inputs["start"], _ = run.trained()
    run.inputs["tokenizer"] = run.tokenizer(num_res_blocks=2)
    run.tokens(run.metadata(run.inputs["tokenizer"]))


def start_that_is_a_tokenizer(run):
    run.inputs["start"] = run.inputs["tokenizer"]


def all_clips_seen(run):
    run.inputs["seen"] = run.inputs["tokens"]


def no_clip_seen(run):
    seen = run.inputs["tokens"]
    run.renumber(first=100)
    run.inputs["seen"], run.inputs["tokens"] = run.inputs["tokens"], seen


def store_with_the_name_of_a_part(run):
    run.inputs["seen"] = run.inputs["tokens.old"] = run.inputs["tokens"]


def damaged_checkpoint(run):
    _, earlier = run.trained()
    saved = dict(earlier.saved[2])
    saved["state.safetensors"] = saved["state.safetensors"][:-100]
    run.rank.saved = {2: saved}


def checkpoint_without_weights(run):
    _, earlier = run.trained()
    run.rank.saved = {2: {"progress.json": earlier.saved[2]["progress.json"]}}


def checkpoint_without_progress(run):
    _, earlier = run.trained()
    run.rank.saved = {2: {"state.safetensors": earlier.saved[2]["state.safetensors"]}}


def checkpoint_of_half_a_progress(run):
    _, earlier = run.trained()
    progress = json.loads(earlier.saved[2]["progress.json"])
    del progress["progress"]
    run.rank.saved = {2: {**earlier.saved[2], "progress.json": json.dumps(progress).encode()}}


def patience_without_evaluations(run):
    run.options = {"training": {"phases": [PHASE], "validation": {"patience": 1, "points": 0}}}


def checkpoint_of_another_shape(run):
    _, earlier = run.trained(model={"depth": 3})
    run.rank.saved = earlier.saved


TABLE = [
    (other_tokenizer, ContractError, "was made by tokenizer .*tokenize the clips again, by"),
    (tokens_without_tokenizer, ContractError, "made by tokenizer None.*tokenize the clips again"),
    (other_bits, ContractError, r"rows have \[8\] bits per position, the tokenizer 4"),
    (no_training_rows, ConfigError, r"phases\.0\.stores\.tokens.* no rows of the split train"),
    (no_rows_of_a_grid, ConfigError, r"phases\.0\.stores\.tokens.* split train of the grids"),
    (unknown_store, ConfigError, r"phases\.0\.stores\.tokns: no such token store \(.*tokens"),
    (model_of_other_bits, ConfigError, "pretrain.model: has num_bits 4, its tokenizer 8"),
    (
        model_of_another_time_stride,
        ConfigError,
        "pretrain.model: has time_stride 2, its tokenizer 4",
    ),
    (
        more_scales_than_embeddings,
        ConfigError,
        r"phases\.0\.scales.*has 7 scales .*max_scales is 6",
    ),
    (
        tokenizer_of_more_scales_than_embeddings,
        ConfigError,
        "does not fit the tokenizer: .*7 scales",
    ),
    (scales_of_no_grid, ConfigError, r"phases\.0\.scales: .*\(8, 8\).*grids are \[\(4, 4\)\]"),
    (two_schedules_of_a_grid, ValidationError, r"two schedules .*\(4, 4\)"),
    (no_scales, ValidationError, "scales must not be empty"),
    (no_scales_of_a_phase, ValidationError, "scales must not be empty"),
    (too_many_frames, ConfigError, r"phases\.0\.num_frames: 65 frames are 17 .*tokenize longer"),
    (odd_frames, ConfigError, r"phases\.0\.num_frames: 4 frames are not .*use 1 or 5"),
    (indivisible_batch, ValidationError, "batch_size=2 is not a multiple of resources.workers=4"),
    (patience_without_val_rows, ConfigError, r"validation\.patience: no store has rows"),
    (beta_above_1, ValidationError, "betas.1\n.*less than 1"),
    (seed_of_more_than_63_bits, ValidationError, "seed\n.*less than 9223372036854775808"),
    (huge_depth, ValidationError, "less than or equal to 1024"),
    (huge_layers, ValidationError, "the limit is 1e"),
    (no_text_encoder, ConfigError, "none: no such model folder"),
    (
        start_of_another_depth,
        ConfigError,
        "model.depth: is 2, but the start has 3 .set",
    ),
    (start_of_another_tokenizer, ContractError, r"pretrain\.start: .* was trained on tokens of"),
    (start_that_is_a_tokenizer, ContractError, "holds a tokenizer, not a transformer"),
    (all_clips_seen, GateError, r"pretrain\.seen: all 3 clips of tokens:.* were seen before"),
    (no_clip_seen, ConfigError, r"pretrain\.seen: no file of tokens:.* has only clips of other:"),
    (store_with_the_name_of_a_part, ConfigError, r"tokens\.old: is the name of a part"),
    (damaged_checkpoint, ContractError, r"state\.safetensors: cannot be used: SafetensorError"),
    (checkpoint_without_weights, ContractError, r"state\.safetensors: cannot be used: FileNot"),
    (checkpoint_without_progress, ContractError, r"progress\.json: cannot be used: FileNot"),
    (checkpoint_of_half_a_progress, ContractError, r"progress\.json: .*KeyError: 'progress'"),
    (patience_without_evaluations, ValidationError, "patience needs evaluations"),
    (checkpoint_of_another_shape, ContractError, r"state\.safetensors: .* another network"),
]


@pytest.mark.parametrize(
    ("spoil", "error", "message"), TABLE, ids=lambda v: getattr(v, "__name__", "")
)
def test_bad_input_is_a_typed_error_before_the_first_step(spoil, error, message, tmp_path):
    torch.set_num_threads(1)
    run = Run(tmp_path)
    spoil(run)
    with pytest.raises(error, match=message):
        run.start()
    assert run.rank.steps == []
