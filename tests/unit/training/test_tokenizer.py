"""Training a tokenizer: it learns, it resumes exactly, ranks share one batch."""

import copy
import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.ranks import run_ranks
from videoar.core.errors import ConfigError, StageError, TransientStorageError
from videoar.core.ids import canonical_json, seed_from
from videoar.evaluation.reconstruction import Validation
from videoar.media.synthetic import draw, scenes
from videoar.model.tokenizer.config import TOKENIZERS, LossWeights, TokenizerTraining
from videoar.training.tokenizer import TokenizerTrainer

torch.set_num_threads(1)
CFG = TOKENIZERS["tiny"]
CLIPS = np.stack([draw(scene, 9, 32, 8.0) for scene in scenes()[:6]])
SIZES = [(32, 32), (32, 56), (56, 32), (32, 56), (32, 56), (32, 32)]
MIXED = [
    draw(scene, 9, 56, 8.0)[:, :height, :width]
    for scene, (height, width) in zip(scenes(), SIZES, strict=False)
]
ALL_TERMS = LossWeights(l2=1, perceptual=0.1, gan=0.1, gan_start=1)
EVERYTHING = {"weights": ALL_TERMS, "image_share": 0.5, "drop_scales": 2}


RANK_CASES = {"whole": {}, "parts": {"accumulate": 2}, "video": {"image_share": 0.0}}


def options(**changes):
    base = {"steps": 40, "batch_clips": 4, "excerpt_frames": 5, "learning_rate": 4e-3}
    return TokenizerTraining(**{**base, **changes})


def test_training_lowers_the_loss_and_the_average_reconstructs():
    trainer = TokenizerTrainer(CFG, options(ema=0.9, weights=LossWeights(l2=2)), CLIPS)
    val = Validation(CLIPS, {})
    before = val.measure(trainer.averaged())["psnr_db"]
    metrics = [trainer.train_step() for _ in range(40)]
    assert metrics[-1]["pixel"] < 0.6 * metrics[0]["pixel"]
    assert val.measure(trainer.averaged())["psnr_db"] > before + 3
    assert metrics[-1]["latent_norm"] > 0.9  # small latents overshoot
    assert trainer.history[-1]["step"] == 39


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"accumulate": 2, "precision": "bf16"}], ids=str)
def test_resumed_training_with_every_term_is_exact(extra, tmp_path):
    straight = TokenizerTrainer(CFG, options(**EVERYTHING | extra), CLIPS)
    for _ in range(2):
        straight.train_step()
    straight.save(tmp_path)
    resumed = TokenizerTrainer(CFG, options(**EVERYTHING | extra), CLIPS)
    resumed.load(tmp_path)
    assert resumed.step == 2
    for _ in range(2):
        expected = straight.train_step()
        assert resumed.train_step() == expected
    assert {"pixel", "perceptual", "gan", "critic", "quantizer"} <= expected.keys()
    assert resumed.history == straight.history
    for name, weight in straight.average.weights.items():
        assert torch.equal(weight, resumed.average.weights[name])
    for name, weight in straight.discriminator.state_dict().items():
        assert torch.equal(weight, resumed.discriminator.state_dict()[name]), name


def parts_of(trainer):
    return [trainer._on_device(*part) for part in trainer.loader.read(trainer.step).parts]


def videos_of(trainer):
    return [part.video_B3THW for part in parts_of(trainer)]


def test_ranks_share_one_batch():
    (whole,) = videos_of(TokenizerTrainer(CFG, options(), CLIPS))
    halves = [videos_of(TokenizerTrainer(CFG, options(), CLIPS, rank, 2))[0] for rank in range(2)]
    assert torch.equal(whole[0::2], halves[0])
    assert torch.equal(whole[1::2], halves[1])
    with pytest.raises(ConfigError, match="2 ranks x 4 parts"):
        TokenizerTrainer(CFG, options(accumulate=4), CLIPS, 0, 2)
    with pytest.raises(ConfigError, match="multiple of 3"):
        TokenizerTrainer(CFG, options(), CLIPS, 0, 3)
    with pytest.raises(ValueError, match="process group"):
        TokenizerTrainer(CFG, options(), CLIPS, 0, 2).train_step()


def test_image_steps_come_first_and_train_no_past():
    trainer = TokenizerTrainer(CFG, options(image_steps=1), CLIPS)
    assert videos_of(trainer)[0].shape == (20, 3, 1, 32, 32)
    kernel = next(w for w in trainer.net.parameters() if w.ndim == 5 and w.shape[2] == 3)
    trainer.train_step()
    assert not kernel[:, :, :2].any()  # nothing of the past was learned from images
    assert videos_of(trainer)[0].shape == (4, 3, 5, 32, 32)
    trainer.train_step()
    assert kernel[:, :, :2].any()


def test_images_and_videos_of_a_batch_have_equal_weight():
    def parts(**more):
        shared = options(batch_clips=8, image_share=0.25, **more)
        return parts_of(TokenizerTrainer(CFG, shared, CLIPS))

    found = parts()
    assert [part.video_B3THW.shape[::2] for part in found] == [(2, 1, 32), (6, 5, 32)]
    assert [part.weight for part in found] == [0.25, 0.75]
    split = parts(accumulate=4)
    assert [len(part.video_B3THW) for part in split] == [1, 1, 2, 2, 1, 1]
    assert sum(part.weight for part in split) == 1
    joined = torch.cat([part.video_B3THW for part in split[2:]])
    assert torch.equal(joined, found[1].video_B3THW)


@pytest.mark.parametrize("extra", [{}, {"image_share": 0.25}, EVERYTHING], ids=str)
def test_step_in_parts_equals_the_step_of_the_whole_batch(extra):
    def trained(accumulate):
        trainer = TokenizerTrainer(CFG, options(accumulate=accumulate, **extra), CLIPS)
        trainer.metrics = [trainer.train_step() for _ in range(3)]
        return trainer

    whole, parts = trained(1), trained(2)
    for a, b in zip(whole.metrics, parts.metrics, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    for a, b in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-3 * a.grad.norm()  # of the third step


def test_drop_scales_omits_last_scales_at_random_never_all():
    trainer = TokenizerTrainer(CFG, options(drop_scales=2), CLIPS)
    drawn = {tuple(trainer._kept_scales(np.random.default_rng(seed), 3)) for seed in range(40)}
    assert drawn == {(True, a, b) for a in (True, False) for b in (True, False)}
    with pytest.raises(ConfigError, match="none of 3 scales"):
        TokenizerTrainer(CFG, options(drop_scales=3), CLIPS)


class Read:
    """Clips that note which of them were asked for, and fail at one of them."""

    def __init__(self, bad=None):
        self.numbers, self.bad = [], bad

    def __len__(self):
        return len(CLIPS)

    def __getitem__(self, index):
        self.numbers.append(index)
        if len(self.numbers) - 1 == self.bad:
            raise ConfigError("clip", "is bad")
        return CLIPS[index]


def test_next_batch_is_prefetched_and_its_error_is_raised_in_its_step():
    def read(steps, bad=None):
        clips = Read(bad)
        trainer = TokenizerTrainer(CFG, options(steps=steps), clips)
        trainer.train_step()
        trainer.loader._thread.submit(int).result()  # after what is being read
        return trainer, clips

    trainer, clips = read(steps=3)
    for step in range(3):
        trainer.loader.read(step)
    assert clips.numbers[:8] == clips.numbers[8:16]  # of the first two steps, in their order
    assert len(read(steps=1)[1].numbers) == 4  # nothing beyond the last
    trainer, clips = read(steps=3, bad=5)
    with pytest.raises(ConfigError, match="is bad"):
        trainer.train_step()
    assert trainer.step == 1


def mixed(rank=0, world_size=1, **changes):
    return TokenizerTrainer(CFG, options(**changes), MIXED, rank, world_size, sizes_px=SIZES)


def test_batches_have_one_size_in_proportion_to_its_clips():
    trainer, seen = mixed(), []
    for trainer.step in range(300):
        (video,) = videos_of(trainer)
        seen.append(tuple(video.shape[-2:]))
    shares = {size: seen.count(size) / 300 for size in SIZES}
    wanted = {size: SIZES.count(size) / 6 for size in SIZES}
    assert shares == pytest.approx(wanted, abs=0.08)
    other = mixed(rank=1, world_size=2)
    for other.step in (0, 7, 299):
        (video,) = videos_of(other)
        assert tuple(video.shape[-2:]) == seen[other.step]


def test_draws_with_one_size_do_not_depend_on_sizes():
    (batch,) = videos_of(TokenizerTrainer(CFG, options(), CLIPS))
    (same,) = videos_of(TokenizerTrainer(CFG, options(), CLIPS, sizes_px=[(32, 32)] * 6))
    draw = np.random.default_rng(seed_from("tokenizer", 0, 0))
    chosen, places = draw.integers(6, size=4), draw.random(4)
    wanted = [
        CLIPS[i][(start := int(place * 5)) : start + 5]
        for i, place in zip(chosen, places, strict=True)
    ]
    video = torch.from_numpy(np.stack(wanted)).permute(0, 4, 1, 2, 3) / 127.5 - 1
    assert torch.equal(batch, video)
    assert torch.equal(batch, same)


@pytest.mark.slow
def test_resumed_training_on_several_sizes_is_exact(tmp_path):
    everything = {**EVERYTHING, "accumulate": 2, "seed": 4}
    straight, sizes = mixed(**everything), []
    for step in range(6):
        if step == 2:
            straight.save(tmp_path)
        sizes.append(tuple(parts_of(straight)[0].video_B3THW.shape[-2:]))
        expected = straight.train_step()
    assert len(set(sizes[2:])) == 3
    resumed = mixed(**everything)
    resumed.load(tmp_path)
    for _ in range(4):
        found = resumed.train_step()
    assert found == expected
    for name, weight in straight.average.weights.items():
        assert torch.equal(weight, resumed.average.weights[name])
    assert resumed.averaged().cfg == CFG
    with pytest.raises(ConfigError, match="none of 3 scales"):
        mixed(drop_scales=3)


def test_half_precision_trains_full_precision_weights():
    full = TokenizerTrainer(CFG, options(), CLIPS).train_step()
    trainer = TokenizerTrainer(CFG, options(precision="bf16", ema=0.9), CLIPS)
    metrics = [trainer.train_step() for _ in range(40)]
    assert metrics[0]["pixel"] == pytest.approx(full["pixel"], rel=0.02)
    assert metrics[0]["pixel"] != full["pixel"]
    assert metrics[-1]["pixel"] < 0.6 * metrics[0]["pixel"]
    assert {weight.dtype for weight in trainer.average.weights.values()} == {torch.float32}


def test_start_changes_the_initial_network():
    def halve(net):
        net.decoder.conv_out.weight.mul_(0.5)

    plain = TokenizerTrainer(CFG, options(), CLIPS)
    started = TokenizerTrainer(CFG, options(), CLIPS, start=torch.no_grad()(halve))
    name = "decoder.conv_out.weight"
    assert torch.equal(started.average.weights[name], 0.5 * plain.average.weights[name])


def test_unusable_clips_and_networks_are_rejected():
    with pytest.raises(ConfigError, match="no clips"):
        TokenizerTrainer(CFG, options(), CLIPS[:0])
    with pytest.raises(ConfigError, match="longer than a clip of 9"):
        TokenizerTrainer(CFG, options(excerpt_frames=17), CLIPS).train_step()
    trainer = TokenizerTrainer(CFG, options(), CLIPS)
    with torch.no_grad():
        trainer.net.decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(StageError, match=r"training step 4: .* loss is (nan|inf)"):
        train(trainer, 5)


def lost(images_N3HW):
    """Features whose difference is no number, without a gradient."""
    return [images_N3HW.detach() * torch.nan]


def steep(images_N3HW):
    """Features without a difference, whose gradient is not finite."""
    return [(images_N3HW * 0).sqrt()]


def test_step_with_a_discriminator_is_that_of_the_paper():
    weights = LossWeights(gan=0.3, lecam=0.7)
    trainer = TokenizerTrainer(CFG, options(weights=weights), CLIPS)
    lecam = trainer.discriminator.lecam
    lecam.real.fill_(0.2), lecam.fake.fill_(-0.4)
    (part,) = parts_of(trainer)
    with torch.no_grad():
        latent = trainer.net.encode(part.video_B3THW)
        rebuilt = trainer.net.decode(trainer.net.quantizer(latent).latent_BKTHW)
    judge = copy.deepcopy(trainer.discriminator.judge)
    real, fake = judge(part.video_B3THW), judge(rebuilt)
    gan = -0.3 * fake.mean().item()
    hinge = ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2
    penalty = (real + 0.4).relu().square().mean() + (0.2 - fake).relu().square().mean()
    by_hand = hinge + 0.7 * penalty
    by_hand.backward()

    metrics = trainer.train_step()
    assert metrics["gan"] == pytest.approx(gan, rel=1e-4)
    assert metrics["critic"] == pytest.approx(by_hand.item(), rel=1e-4)
    parts = metrics["pixel"] + metrics["quantizer"] + metrics["gan"]
    assert metrics["loss"] == pytest.approx(parts, rel=1e-5)
    assert lecam.real.item() == pytest.approx(0.999 * 0.2 + 0.001 * real.mean().item(), abs=1e-6)
    assert lecam.fake.item() == pytest.approx(0.999 * -0.4 + 0.001 * fake.mean().item(), abs=1e-6)
    torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
    for own, expected in zip(
        trainer.discriminator.judge.parameters(), judge.parameters(), strict=True
    ):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-3, atol=1e-5)


def test_adversarial_term_has_a_gradient_to_the_video_alone():
    trainer = TokenizerTrainer(CFG, options(**EVERYTHING), CLIPS)
    video = videos_of(trainer)[0].requires_grad_()
    trainer.discriminator.judge_frozen(video).mean().backward()
    assert video.grad.abs().sum() > 0
    for weight in trainer.discriminator.judge.parameters():
        assert weight.grad is None
        assert weight.requires_grad


def flat(images_N3HW):
    return [images_N3HW]


def watched_by(features, rank=0, world_size=1):
    deep = options(weights=LossWeights(perceptual=1))
    return TokenizerTrainer(CFG, deep, CLIPS, rank, world_size, features=features)


def train(trainer, steps):
    for _ in range(steps):
        metrics = trainer.train_step()
    return metrics


def state_of(trainer):
    """Return all that a step may change."""
    judged = trainer.discriminator.state_dict() if trainer.discriminator else {}
    adams = [
        trainer.optimizer,
        *([trainer.discriminator.optimizer] if trainer.discriminator else []),
    ]
    moments = [m for adam in adams for own in adam.state.values() for m in own.values()]
    weights = [*trainer.net.parameters(), *trainer.average.weights.values(), *judged.values()]
    return [tensor.detach().clone() for tensor in (*weights, *moments)]


@pytest.mark.fault(23, "a batch without finite values, tokenizer")
def test_non_finite_step_is_skipped_and_repeated_ones_stop_the_run(tmp_path, caplog):
    for features, what in ((lost, "loss is nan"), (steep, "gradient norm of the tokenizer is nan")):
        trainer = watched_by(features)
        before = state_of(trainer)
        train(trainer, 4)
        assert (trainer.step, caplog.text.count(what)) == (4, 4)
        assert all(map(torch.equal, before, state_of(trainer)))
        trainer.save(tmp_path)
        resumed = watched_by(features)
        resumed.load(tmp_path)
        with pytest.raises(StageError, match=f"training step 4: .*{what}.*lower the learning rate"):
            resumed.train_step()
        resumed.load(tmp_path)
        resumed.features = flat  # a spike passes
        metrics = train(resumed, 1)
        assert np.isfinite([*metrics.values()]).all()
        assert not all(map(torch.equal, before, state_of(resumed)))
        assert "loss" not in resumed.history[0] or features is steep
        canonical_json(resumed.history)  # has no word for what is no number
        resumed.features = features
        train(resumed, 4)


def test_non_finite_discriminator_gradient_skips_the_whole_step():
    trainer = TokenizerTrainer(CFG, options(**EVERYTHING), CLIPS)
    train(trainer, 2)
    before = state_of(trainer)
    hook = next(trainer.discriminator.parameters()).register_hook(
        lambda gradient: gradient * torch.inf
    )
    train(trainer, 1)
    assert all(map(torch.equal, before, state_of(trainer)))
    hook.remove()
    train(trainer, 1)
    assert not any(map(torch.equal, before[:3], state_of(trainer)))


def flat_weights(trainer):
    parts = [*trainer.net.parameters(), *trainer.discriminator.state_dict().values()]
    return torch.cat([w.detach().flatten() for w in parts]).numpy()


def _join(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # a rank that is left alone fails its test, soon
    )


def _train_as_rank(rank, folder):
    _join(rank, folder)
    for name, more in RANK_CASES.items():
        trainer = TokenizerTrainer(CFG, options(**EVERYTHING | more), CLIPS, rank, 2)
        for _ in range(3):
            metrics = trainer.train_step()
        np.save(f"{folder}/{name}{rank}.npy", flat_weights(trainer))
        Path(f"{folder}/{name}{rank}.json").write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(tmp_path):
    run_ranks(_train_as_rank, 2, str(tmp_path))
    for name, more in RANK_CASES.items():
        first, second = np.load(tmp_path / f"{name}0.npy"), np.load(tmp_path / f"{name}1.npy")
        assert np.array_equal(first, second)
        alone = TokenizerTrainer(CFG, options(**EVERYTHING | more), CLIPS)
        for _ in range(3):
            metrics = alone.train_step()
        for rank in range(2):
            found = json.loads((tmp_path / f"{name}{rank}.json").read_text())
            assert found == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        assert np.abs(first - flat_weights(alone)).max() < 2e-4


@torch.no_grad()
def _change(net):
    net.decoder.conv_out.bias[0] += 1e-6


def _fail_as_rank(rank, folder):
    _join(rank, folder)
    trainer = TokenizerTrainer(CFG, options(), CLIPS, rank, 2, start=_change if rank else None)
    with pytest.raises(StageError, match=r"ranks \[1\] begin with other weights"):
        trainer.train_step()
    trainer = TokenizerTrainer(CFG, options(), CLIPS, rank, 2)
    trainer.step = rank
    with pytest.raises(TransientStorageError, match="ranks begin at steps"):
        trainer.train_step()
    for wrong, what in ((lost, "loss"), (steep, "gradient norm of the tokenizer")):
        trainer = watched_by(wrong if rank else flat, rank, 2)
        before = state_of(trainer)
        train(trainer, 4)
        assert all(map(torch.equal, before, state_of(trainer)))
        with pytest.raises(StageError, match=f"{what} is nan"):
            trainer.train_step()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_error_of_one_rank_stops_both(tmp_path):
    run_ranks(_fail_as_rank, 2, str(tmp_path))
