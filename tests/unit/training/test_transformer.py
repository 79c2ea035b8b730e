import json
from pathlib import Path

import numpy as np
import pytest
import torch

from videoar.core.errors import ContractError, StageError
from videoar.model.transformer.config import PRESETS, CFECConfig
from videoar.model.transformer.network import VideoAR
from videoar.storage.store import open_store
from videoar.training.config import OptimizerConfig, Phase, TransformerTraining
from videoar.training.model_store import load_model, publish_model, save_model
from videoar.training.transformer import TransformerTrainer

SCALES = ((1, 1), (2, 2))
CONFIG = PRESETS["tiny"].model_copy(update={"scales": SCALES})


class Squares:
    """Latents that only depend on the caption, in a loader's clothes."""

    def __init__(self, batch_size):
        self.batch_size, self.step = batch_size, 0

    def __iter__(self):
        while self.step < 4:
            self.step += 1
            draw = torch.Generator().manual_seed(0)
            pair = torch.randn(2, 8, 3, 2, 2, generator=draw) * 2
            yield {
                "latent_BTKHW": pair.repeat(self.batch_size // 2, 1, 1, 1, 1).transpose(1, 2),
                "captions": ["red", "blue"] * (self.batch_size // 2),
                "global_size": self.batch_size,
            }
        self.step = 0

    def state_dict(self):
        return {"step": self.step, "batch_size": self.batch_size}

    def load_state_dict(self, state):
        assert state["batch_size"] == self.batch_size
        self.step = state["step"]


def make_trainer(steps=4, **options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = TransformerTraining(
        phases=(Phase(steps=steps, batch_size=4), Phase(steps=2, batch_size=2, num_frames=5)),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        **options,
    )
    return TransformerTrainer(VideoAR(CONFIG), training, Squares)


def test_training_halves_the_loss():
    trainer = make_trainer(steps=50, corruption=CFECConfig(p_max=0, delta=0), drop_text=0.0)
    losses = []
    trainer.run(lambda _trainer, metrics: losses.append(metrics["loss"]))
    assert losses[0] == pytest.approx(0.693, rel=0.05)
    assert losses[49] < 0.5 * losses[0]
    assert len(losses) == 52


@pytest.mark.parametrize("stop", [3, 4, 5])  # the first phase has 4 steps
def test_resumed_run_equals_the_uninterrupted_one(stop, tmp_path):
    whole = make_trainer()
    whole.run(lambda trainer, _: trainer.save(tmp_path) if trainer.step == stop else None)
    resumed = make_trainer()
    resumed.load(tmp_path)
    assert resumed.step == stop
    resumed.run(lambda *_: None)
    assert resumed.history == whole.history
    for name, weight in whole.average.weights.items():
        assert torch.equal(weight, resumed.average.weights[name]), name


def test_non_finite_step_is_skipped_and_repeated_ones_stop_the_run(tmp_path):
    trainer = make_trainer(steps=6)
    trainer.model.features.weight.data[0, 0] = float("nan")
    before = trainer.model.head.weight.clone()
    with pytest.raises(StageError, match="training step 4: not finite"):
        trainer.run(lambda trainer, _: trainer.save(tmp_path) if trainer.step == 3 else None)
    assert torch.equal(trainer.model.head.weight, before)
    assert {tuple(point) for point in trainer.history} == {
        ("step", "bit_accuracy", "learning_rate")
    }
    resumed = make_trainer(steps=6)
    resumed.load(tmp_path)
    with pytest.raises(StageError, match="training step 4: not finite"):
        resumed.run(lambda *_: None)


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


def _step_of_rank(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    trainer = make_trainer()
    batch = next(iter(Squares(4)))
    if rank:
        batch |= {"captions": [], "latent_BTKHW": batch["latent_BTKHW"][:0]}
    metrics = trainer.take_step(batch, trainer.training.phases[0], 0)
    torch.distributed.destroy_process_group()
    Path(f"{folder}/{rank}.json").write_text(json.dumps(metrics))
    flat = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
    np.save(f"{folder}/{rank}.npy", flat.numpy())


@pytest.mark.slow
def test_rank_without_rows_of_a_short_batch_joins_the_step(tmp_path):
    torch.multiprocessing.spawn(_step_of_rank, args=(str(tmp_path),), nprocs=2)
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))
    alone = make_trainer()
    metrics = alone.take_step(next(iter(Squares(4))), alone.training.phases[0], 0)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == pytest.approx(metrics, rel=1e-4)
