"""Sharded training takes the steps of an unsharded one, and its checkpoints fit any world size."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.ranks import run_ranks
from videoar.core.errors import ContractError, WorkerLostError
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR
from videoar.training.config import OptimizerConfig, Phase, TransformerTraining, Validation
from videoar.training.model_store import kind_of
from videoar.training.objective import Rows
from videoar.training.parallel import gathered, is_sharded
from videoar.training.transformer import TransformerTrainer

CONFIG = PRESETS["tiny"].model_copy(update={"scales": ((1, 1), (2, 2))})
STEPS, SAVED_AT = 4, 2


class Share:
    """The rows of one rank; the fourth of four has none."""

    def __init__(self, rank, ranks, seed):
        self.rank, self.ranks, self.seed, self.step = rank, ranks, seed, 0

    def seek(self, position):
        self.step = position

    def __iter__(self):
        while self.step < 2:
            draw = torch.Generator().manual_seed(self.seed + self.step)
            latent_BTKHW = torch.randn(3, 3, 8, 2, 2, generator=draw)
            self.step += 1
            first, last = (-(-3 * i // self.ranks) for i in (self.rank, self.rank + 1))
            yield {
                "latent_BTKHW": latent_BTKHW[first:last],
                "captions": ["red", "a blue one", "none"][first:last],
                "global_size": 3,
                "first_row": first,
            }
        self.step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


class Data:
    def __init__(self, rank, ranks):
        self.place = rank, ranks

    def train(self, _):
        return Share(*self.place, seed=0)

    def held_out(self, _):
        return {"tokens": Share(*self.place, seed=10)}


def make_trainer(rank=0, ranks=1, **options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = TransformerTraining(
        phases=(Phase(steps=STEPS, batch_size=3, p_mask=0.3, accumulate=2),),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        validation=Validation(points=2, patience=9),
        drop_text=0.5,
        shard=True,
        **options,
    )
    return TransformerTrainer(VideoAR(CONFIG), training, Data(rank, ranks))


def finish(trainer, folder, rank, save_into=None):
    """Take the remaining steps; write the curve and the weights to publish."""

    def after_step(trainer):
        if save_into and trainer.step == SAVED_AT:
            trainer.save(save_into)

    trainer.run(after_step)
    weights = gathered(trainer.weights, is_kept=rank == 0)
    if rank == 0:
        folder.mkdir()
        (folder / "curve.json").write_text(json.dumps(trainer.history))
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "w")
    else:
        assert weights == {}


def join(rank, ranks, folder):
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet{ranks}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=120),
    )


def _as_rank(rank, ranks, folder):
    folder = Path(folder)
    join(rank, ranks, folder)
    if ranks == 2:
        trainer = make_trainer(rank, ranks)
        assert is_sharded(trainer.model)
        assert kind_of(trainer.model) == "transformer"
        weights = [*trainer.model.parameters()]
        own = sum(weight.to_local().numel() for weight in weights)
        assert own <= 0.51 * sum(weight.numel() for weight in weights)
        finish(trainer, folder / "sharded", rank, folder / "by2")
        options = {"precision": "bf16", "activation_checkpointing": "selective"}
        trainer = make_trainer(rank, ranks, **options)
        trainer.model.compile_layers("eager")
        finish(trainer, folder / "bf16", rank)
    else:
        for saved in ("by1", "by2"):
            trainer = make_trainer(rank, ranks)
            trainer.load(folder / saved)
            assert trainer.step == SAVED_AT
            finish(trainer, folder / f"{saved}_then4", rank)
    torch.distributed.destroy_process_group()


def curve_of(folder):
    return json.loads((folder / "curve.json").read_text())


def require_same(folder, expected, tolerance=1e-5):
    found = curve_of(folder)
    assert len(found) == len(expected) == STEPS
    for point, wanted in zip(found, expected, strict=True):
        assert point == pytest.approx(wanted, rel=tolerance, abs=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sharded_training_equals_the_unsharded_and_resumes_at_any_world_size(tmp_path):
    for folder in ("by1", "by2"):
        (tmp_path / folder).mkdir()
    finish(make_trainer(), tmp_path / "alone", 0, tmp_path / "by1")
    expected = curve_of(tmp_path / "alone")
    for ranks in (2, 4):
        run_ranks(_as_rank, ranks, ranks, str(tmp_path))
    require_same(tmp_path / "sharded", expected)
    require_same(tmp_path / "bf16", expected, tolerance=0.2)
    files = sorted(path.name for path in (tmp_path / "by2").iterdir())
    assert files == ["progress.json", "state-0-of-2.safetensors", "state-1-of-2.safetensors"]
    resumed = make_trainer()
    resumed.load(tmp_path / "by2")
    finish(resumed, tmp_path / "by2_then1", 0)
    weights = load_file(tmp_path / "alone" / "w")
    for name in ("by2_then1", "by1_then4", "by2_then4"):
        require_same(tmp_path / name, expected, tolerance=1e-4)
        for key, weight in load_file(tmp_path / name / "w").items():
            torch.testing.assert_close(weight, weights[key], rtol=1e-3, atol=1e-4)
    (tmp_path / "by2" / "state-1-of-2.safetensors").unlink()
    with pytest.raises(ContractError, match=r"state-1-of-2\.safetensors"):
        make_trainer().load(tmp_path / "by2")


def _until_lost(rank, folder):
    join(rank, 2, folder)
    trainer = make_trainer(rank, 2)

    def after_step(trainer):
        if rank and trainer.step == 1:
            os._exit(1)

    try:
        trainer.run(after_step)
    except WorkerLostError as error:
        Path(f"{folder}/lost").write_text(str(error))


@pytest.mark.slow
def test_rank_that_is_lost_in_a_pass_is_a_retryable_error_of_the_others(tmp_path):
    spawn = torch.multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=_until_lost, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert "lost the connection to another rank" in (tmp_path / "lost").read_text()


@pytest.mark.parametrize(("size", "lengths"), [(0, [0, 0]), (1, [1, 0]), (2, [1, 1]), (5, [2, 3])])
def test_every_rank_of_a_sharded_model_runs_the_same_passes(size, lengths):
    captions = [str(row) for row in range(size)]
    rows = Rows(torch.randn(size, 8, 3, 2, 2), captions, torch.arange(size))
    parts = rows.parts(2, pads=True)
    assert [len(part) for part in parts] == lengths
    assert all(part.latent_BKTHW.shape[0] == max(1, len(part)) for part in parts)
    assert [caption for part in parts if len(part) for caption in part.captions] == captions
    assert [len(part) for part in rows.parts(2)] == [length for length in lengths if length]
