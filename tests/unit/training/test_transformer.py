import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.ranks import run_ranks
from videoar.core.errors import ContractError, StageError
from videoar.model.transformer.config import PRESETS, CFECConfig
from videoar.model.transformer.network import VideoAR
from videoar.storage.store import open_store
from videoar.training.config import (
    OptimizerConfig,
    Phase,
    SpikeConfig,
    TransformerTraining,
    Validation,
)
from videoar.training.held_out import evaluate
from videoar.training.model_store import load_model, publish_model, save_model
from videoar.training.objective import Objective
from videoar.training.spikes import LossSpikeError
from videoar.training.transformer import TransformerTrainer

SCALES = ((1, 1), (2, 2))
CONFIG = PRESETS["tiny"].model_copy(update={"scales": SCALES})


class Squares:
    """Latents that only depend on the caption, in the form of a loader."""

    def __init__(self, batch_size, seed=0):
        self.batch_size, self.seed, self.step = batch_size, seed, 0

    def seek(self, position):
        self.step = position

    def __iter__(self):
        while self.step < 4:
            self.step += 1
            yield self.batch(self.seed)
        self.step = 0

    def batch(self, seed):
        draw = torch.Generator().manual_seed(seed)
        pair = torch.randn(2, 8, 3, 2, 2, generator=draw) * 2
        return {
            "latent_BTKHW": pair.repeat(self.batch_size // 2, 1, 1, 1, 1).transpose(1, 2),
            "captions": ["red", "blue"] * (self.batch_size // 2),
            "global_size": self.batch_size,
            "first_row": 0,
        }

    def state_dict(self):
        return {"step": self.step, "batch_size": self.batch_size}

    def load_state_dict(self, state):
        assert state["batch_size"] == self.batch_size
        self.step = state["step"]


class Data:
    """Val rows are other latents than those that are trained."""

    def train(self, phase):
        return Squares(phase.batch_size)

    def held_out(self, phase):
        return {"tokens": Squares(phase.batch_size, seed=1)}


def make_trainer(steps=4, data=None, phase=None, **options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = TransformerTraining(
        phases=(
            Phase(steps=steps, batch_size=4, **(phase or {})),
            Phase(steps=2, batch_size=2, num_frames=5),
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        **options,
    )
    return TransformerTrainer(VideoAR(CONFIG), training, data or Data())


def test_training_halves_the_loss():
    trainer = make_trainer(steps=50, corruption=CFECConfig(p_max=0, delta=0), drop_text=0.0)
    trainer.run(lambda _: None)
    losses = [point["loss"] for point in trainer.history]
    assert losses[0] == pytest.approx(0.693, rel=0.05)
    assert losses[49] < 0.5 * losses[0]
    assert len(losses) == 52


@pytest.mark.parametrize("stop", [3, 4, 5])  # the first phase has 4 steps
def test_resumed_run_equals_the_uninterrupted_one(stop, tmp_path):
    whole = make_trainer()
    whole.run(lambda trainer: trainer.save(tmp_path) if trainer.step == stop else None)
    resumed = make_trainer()
    resumed.load(tmp_path)
    assert resumed.step == stop
    resumed.run(lambda _: None)
    assert resumed.history == whole.history
    for name, weight in whole.average.weights.items():
        assert torch.equal(weight, resumed.average.weights[name]), name


@pytest.mark.fault(23, "a batch without finite values, transformer")
def test_non_finite_step_is_skipped_and_repeated_ones_stop_the_run(tmp_path):
    trainer = make_trainer(steps=6)
    trainer.model.features.weight.data[0, 0] = float("nan")
    before = trainer.model.head.weight.clone()
    with pytest.raises(StageError, match="training step 4: not finite"):
        trainer.run(lambda trainer: trainer.save(tmp_path) if trainer.step == 3 else None)
    assert torch.equal(trainer.model.head.weight, before)
    assert all("loss" not in point for point in trainer.history)
    resumed = make_trainer(steps=6)
    resumed.load(tmp_path)
    with pytest.raises(StageError, match="training step 4: not finite"):
        resumed.run(lambda _: None)


def test_published_model_loads_without_pickle(tmp_path):
    torch.manual_seed(0)
    model = VideoAR(CONFIG)
    store = open_store((tmp_path / "store").as_uri())
    table = publish_model(
        model, store, weights=model.state_dict(), step=7, metrics={"loss": 0.5}, history=[]
    )
    row = table.to_pylist()[0]
    assert {file["path"] for file in row["files"]} == {"config.json", "model.safetensors"}
    folder = tmp_path / "model"
    folder.mkdir()
    loaded = load_model(store.fetch_folder(row["files"], folder))
    assert loaded.cfg == CONFIG
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])


def test_folder_of_another_kind_is_rejected(tmp_path):
    save_model(VideoAR(CONFIG), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "kind": "upscaler"}))
    with pytest.raises(ContractError, match="upscaler"):
        load_model(tmp_path)


def _take_step(trainer, batch, phase=0):
    trainer.take_step(batch, trainer.training.phases[phase], 0)
    trainer.read_metrics()
    return trainer.metrics


def _step_of_rank(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    trainer = make_trainer()
    batch = next(iter(Squares(4)))
    if rank:
        batch |= {"captions": [], "latent_BTKHW": batch["latent_BTKHW"][:0], "first_row": 4}
    metrics = _take_step(trainer, batch)
    torch.distributed.destroy_process_group()
    Path(f"{folder}/{rank}.json").write_text(json.dumps(metrics))
    flat = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
    np.save(f"{folder}/{rank}.npy", flat.numpy())


@pytest.mark.slow
def test_rank_without_rows_of_a_short_batch_joins_the_step(tmp_path):
    run_ranks(_step_of_rank, 2, str(tmp_path))
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))
    metrics = _take_step(make_trainer(), next(iter(Squares(4))))
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result == pytest.approx(metrics, rel=1e-4)


def _slice_of(batch, start, stop):
    return batch | {
        "latent_BTKHW": batch["latent_BTKHW"][start:stop],
        "captions": batch["captions"][start:stop],
        "first_row": start,
    }


@pytest.mark.parametrize("cuts", [(0, 2, 4), (0, 1, 2, 3, 4), (0, 3, 4)])
def test_draws_belong_to_rows_of_the_global_batch(cuts):
    phase = {"p_mask": 0.4}
    whole = make_trainer(phase=phase, drop_text=0.5)
    batch = next(iter(Squares(4)))
    expected = _gradient(whole, [batch])
    ranks = [_slice_of(batch, a, b) for a, b in itertools.pairwise(cuts)]
    divided = _gradient(make_trainer(phase=phase, drop_text=0.5), ranks)
    assert (divided - expected).norm() < 1e-5 * expected.norm()
    moved = [_slice_of(batch, a, b) | {"first_row": 0} for a, b in itertools.pairwise(cuts)]
    other = _gradient(make_trainer(phase=phase, drop_text=0.5), moved)
    assert (other - expected).norm() > 0.1 * expected.norm()


def _gradient(trainer, ranks):
    """Return the sum over ranks of the gradients of one step."""
    for batch in ranks:
        rows = trainer.objective.rows(batch, None, seed_of=(0,))
        trainer._backward(rows, trainer.training.phases[0], len(rows) / batch["global_size"])
    return torch.cat([w.grad.flatten() for w in trainer.model.parameters() if w.grad is not None])


def test_accumulated_parts_equal_the_whole_batch():
    whole, parts = make_trainer(), make_trainer(phase={"accumulate": 3})
    for trainer in (whole, parts):
        _take_step(trainer, next(iter(Squares(4))))
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-5)


def test_held_out_numbers_are_those_of_the_averaged_weights():
    trainer = make_trainer(validation=Validation(points=2, max_rows=6))
    trainer.run(lambda _: None)
    points = [point for point in trainer.history if "val/loss" in point]
    assert [point["step"] for point in points] == [2, 4, 5, 6]
    assert trainer.history[-1]["val/loss"] == trainer.held_out["val/loss"]
    phase, training = trainer.training.phases[-1], trainer.training
    averaged = VideoAR(CONFIG)
    averaged.load_state_dict(trainer.average.weights)
    loaders = {"tokens": Squares(phase.batch_size, seed=1)}
    result = evaluate(Objective(averaged, training), loaders, phase)
    assert result == trainer.held_out


def test_held_out_numbers_follow_from_the_logits():
    trainer = make_trainer(validation=Validation(points=1, max_rows=3))
    phase = trainer.training.phases[0]
    result = evaluate(trainer.objective, {"tokens": Squares(4, seed=1)}, phase)
    batch = _slice_of(next(iter(Squares(4, seed=1))), 0, 3)
    rows = trainer.objective.rows(batch, None, seed_of=("val", "tokens", 0))
    with torch.no_grad():
        clean = trainer.objective.predict(rows, phase, is_training=False, flips=False)
        flipped = trainer.objective.predict(rows, phase, is_training=False, flips=True)
    for name, predicted in (("val", clean), ("val_flipped", flipped)):
        odds = predicted.logits_BLK2[..., 1] - predicted.logits_BLK2[..., 0]
        nats = torch.where(predicted.bits_BLK, -odds, odds).double().exp().log1p()
        weighted = (nats.mean(dim=(0, 2)) * predicted.layout.weight_l).sum().item()
        assert result[f"{name}/loss"] == pytest.approx(weighted, rel=1e-5)
        last = nats[:, -4:].mean().item()  # frame 2, scale 1
        assert result[f"{name}/frame2/scale1/block_nats"] == pytest.approx(last, rel=1e-5)
        first = nats[:, [0, 5, 10]].mean().item()  # scale 0 of all three frames
        assert result[f"{name}/scale0/scale_nats"] == pytest.approx(first, rel=1e-5)
    assert result["val/loss"] != result["val_flipped/loss"]


def test_patience_ends_a_phase_and_begins_anew_in_the_next(tmp_path):
    options = {"validation": Validation(points=20, patience=2), "steps": 40}
    trainer = make_trainer(**options)
    kept = {}

    def after_step(trainer):
        kept[trainer.step] = {n: w.clone() for n, w in trainer.average.weights.items()}
        if trainer.step == 3:
            trainer.save(tmp_path)

    trainer.run(after_step)
    curve = [(point["step"], point["val/loss"]) for point in trainer.history if "val/loss" in point]
    first_phase, second_phase = curve[:-2], curve[-2:]
    lowest = min(first_phase, key=lambda point: point[1])
    assert trainer.step < 40, "these val rows are learned by no one: the loss must rise"
    assert first_phase.index(lowest) == len(first_phase) - 3
    assert [step for step, _ in second_phase] == [trainer.step - 1, trainer.step]
    # published: the best of the second phase, although the loss of the first one was lower
    best, loss = min(second_phase, key=lambda point: point[1])
    assert lowest[1] < loss == trainer.held_out["val/loss"]
    assert all(torch.equal(kept[best][name], w) for name, w in trainer.weights.items())
    resumed = make_trainer(**options)
    resumed.load(tmp_path)
    resumed.run(lambda _: None)
    assert resumed.history == trainer.history
    assert all(torch.equal(resumed.weights[name], w) for name, w in trainer.weights.items())


class RowsOfFirstPhase(Data):
    """No val rows in the second phase, which has batches of 2."""

    def held_out(self, phase):
        return super().held_out(phase) if phase.batch_size == 4 else {}


@pytest.mark.parametrize("patience", [None, 2])
def test_phase_without_val_rows_has_no_numbers_and_its_last_weights_are_published(patience):
    validation = Validation(points=2, patience=patience)
    trainer = make_trainer(data=RowsOfFirstPhase(), validation=validation)
    trainer.run(lambda _: None)
    assert any("val/loss" in point for point in trainer.history)
    assert trainer.held_out == {}
    for name, weight in trainer.average.weights.items():
        assert torch.equal(trainer.weights[name], weight)


def test_budget_in_tokens_counts_those_of_the_global_batch(tmp_path):
    # 3 latent frames of 1 + 4 tokens, 4 rows: 60 tokens a step
    phases = (Phase(tokens=200, batch_size=4), Phase(steps=1, batch_size=2))

    def trainer_of():
        torch.manual_seed(0)
        return TransformerTrainer(VideoAR(CONFIG), TransformerTraining(phases=phases), Data())

    whole = trainer_of()
    seen = []

    def after_step(trainer):
        seen.append((trainer.progress.phase, trainer.progress.done))
        if trainer.step == 2:
            trainer.save(tmp_path)

    whole.run(after_step)
    assert seen == [(0, 60), (0, 120), (0, 180), (1, 0), (2, 0)]
    resumed = trainer_of()
    resumed.load(tmp_path)
    resumed.run(lambda _: None)
    assert resumed.history == whole.history


class Spiky(Data):
    """Some batches, counted from 1, have latents that no model of the others predicts."""

    def __init__(self, bad):
        self.bad = bad

    def train(self, phase):
        loader = SpikyLoader(phase.batch_size)
        loader.bad = self.bad
        return loader


class SpikyLoader(Squares):
    def __iter__(self):
        while True:
            self.step += 1
            draw = torch.Generator().manual_seed(7 if self.step in self.bad else 0)
            pair = torch.randn(2, 8, 3, 2, 2, generator=draw) * 2
            yield {
                "latent_BTKHW": pair.repeat(self.batch_size // 2, 1, 1, 1, 1).transpose(1, 2),
                "captions": ["red", "blue"] * (self.batch_size // 2),
                "global_size": self.batch_size,
                "first_row": 0,
            }


def spiky_trainer(*bad):
    return make_trainer(
        steps=14, data=Spiky(bad), corruption=CFECConfig(p_max=0, delta=0), drop_text=0.0,
        validation=Validation(points=0), spike=SpikeConfig(factor=1.2, window=3, max_rollbacks=2),
    )  # fmt: skip


def run_with_rollbacks(trainer, folder):
    """As the stage does: save after every fourth step, go back on a spike."""

    def after_step(trainer):
        if trainer.step % 4 == 0:
            trainer.read_metrics()
            trainer.save(folder)

    while True:
        try:
            return trainer.run(after_step)
        except LossSpikeError as spike:
            trainer.roll_back(lambda load: load(folder), spike)


@pytest.mark.parametrize("bad", [(9,), (9, 10)])  # the second one follows the same checkpoint
def test_spike_of_the_loss_is_rolled_back_and_its_batches_are_skipped(bad, tmp_path):
    trainer = spiky_trainer(*bad)
    trainer.save(tmp_path)
    run_with_rollbacks(trainer, tmp_path)
    (point,) = [point for point in trainer.history if "skipped_batches" in point]
    assert (point["step"], point["skipped_batches"]) == (8, len(bad))
    assert trainer.progress.rollbacks == len(bad)
    assert trainer.step == 16
    losses = [p["loss"] for p in trainer.history if "loss" in p][:14]
    assert max(losses[8:]) < 1.2 * losses[7], "the spike is not part of the curve"
    again = spiky_trainer(*bad)
    again.save(tmp_path)
    run_with_rollbacks(again, tmp_path)
    assert again.history == trainer.history


def test_training_that_spikes_again_and_again_fails(tmp_path):
    trainer = spiky_trainer()
    trainer.save(tmp_path)
    spike = LossSpikeError(0, 2.0, 1.0)
    for _ in range(2):
        trainer.roll_back(lambda load: load(tmp_path), spike)
    with pytest.raises(StageError, match="rolled back 2 times before"):
        trainer.roll_back(lambda load: load(tmp_path), spike)


def test_notice_of_preemption_is_known_to_the_step_after_it():
    trainer = make_trainer(validation=Validation(points=0))
    notices = iter([False, True, False, False, False, False])
    trainer.is_preempted = lambda: next(notices)
    seen = []
    trainer.run(lambda trainer: seen.append(trainer.has_notice))
    assert seen == [False, False, True, False, False, False]
