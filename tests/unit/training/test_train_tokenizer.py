"""Training a tokenizer: it learns, it resumes exactly, ranks share one batch."""

import numpy as np
import pytest
import torch

from videoar.core.errors import ConfigError, StageError
from videoar.media.rendered import draw, scenes
from videoar.model.tokenizer_config import TOKENIZERS, LossWeights, TokenizerTraining
from videoar.training.train_tokenizer import TokenizerTrainer, reconstruction_psnr

torch.set_num_threads(1)
CFG = TOKENIZERS["tiny"]
CLIPS = np.stack([draw(scene, 9, 32, 8.0) for scene in scenes()[:6]])
ALL_TERMS = LossWeights(l2=1, perceptual=0.1, gan=0.1, gan_start=1)


def options(**changes):
    base = {"steps": 40, "batch_clips": 4, "excerpt_frames": 5, "learning_rate": 4e-3}
    return TokenizerTraining(**{**base, **changes})


def test_the_loss_falls_and_the_average_reconstructs():
    trainer = TokenizerTrainer(CFG, options(ema=0.9, weights=LossWeights(l2=2)), CLIPS)
    before = reconstruction_psnr(trainer.averaged(), CLIPS)
    metrics = [trainer.train_step() for _ in range(40)]
    assert metrics[-1]["pixel"] < 0.6 * metrics[0]["pixel"]
    assert reconstruction_psnr(trainer.averaged(), CLIPS) > before + 3
    assert metrics[-1]["latent_norm"] > 0.9  # small latents overshoot
    assert trainer.history[-1]["step"] == 39


def test_every_term_is_finite_and_resuming_is_exact(tmp_path):
    straight = TokenizerTrainer(CFG, options(weights=ALL_TERMS), CLIPS)
    for _ in range(2):
        straight.train_step()
    straight.save(tmp_path)
    resumed = TokenizerTrainer(CFG, options(weights=ALL_TERMS), CLIPS)
    resumed.load(tmp_path)
    assert resumed.step == 2
    for _ in range(2):
        expected = straight.train_step()
        assert resumed.train_step() == expected
    assert {"pixel", "perceptual", "gan", "critic", "quantizer"} <= expected.keys()
    assert resumed.history == straight.history
    for name, weight in straight.average.weights.items():
        assert torch.equal(weight, resumed.average.weights[name])


def test_ranks_share_one_batch():
    whole = TokenizerTrainer(CFG, options(), CLIPS)._batch()
    halves = [TokenizerTrainer(CFG, options(), CLIPS, rank, 2)._batch() for rank in range(2)]
    assert torch.equal(whole[0::2], halves[0])
    assert torch.equal(whole[1::2], halves[1])
    with pytest.raises(ConfigError, match="multiple of 3"):
        TokenizerTrainer(CFG, options(), CLIPS, 0, 3)


def test_images_come_first_and_inflate():
    trainer = TokenizerTrainer(CFG, options(image_steps=1), CLIPS)
    assert trainer._batch().shape == (20, 3, 1, 32, 32)
    kernel = next(w for w in trainer.net.parameters() if w.ndim == 5 and w.shape[2] == 3)
    trainer.train_step()
    assert not kernel[:, :, :2].any()  # nothing of the past was learned from images
    assert trainer._batch().shape == (4, 3, 5, 32, 32)
    trainer.train_step()
    assert kernel[:, :, :2].any()


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(ConfigError, match="no clips"):
        TokenizerTrainer(CFG, options(), CLIPS[:0])
    with pytest.raises(ConfigError, match="longer than a clip of 9"):
        TokenizerTrainer(CFG, options(excerpt_frames=17), CLIPS).train_step()
    trainer = TokenizerTrainer(CFG, options(), CLIPS)
    with torch.no_grad():
        trainer.net.decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(StageError, match="step 0"):
        trainer.train_step()


def _train_as_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    trainer = TokenizerTrainer(CFG, options(weights=ALL_TERMS), CLIPS, rank, 2)
    for _ in range(3):
        trainer.train_step()
    torch.distributed.destroy_process_group()
    parts = [*trainer.net.parameters(), *trainer.critic.parameters()]
    np.save(f"{folder}/{rank}.npy", torch.cat([w.detach().flatten() for w in parts]).numpy())


@pytest.mark.slow
def test_two_ranks_on_different_clips_keep_equal_weights(tmp_path):
    torch.multiprocessing.spawn(_train_as_rank, args=(str(tmp_path),), nprocs=2)
    first, second = np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy")
    assert np.array_equal(first, second)
