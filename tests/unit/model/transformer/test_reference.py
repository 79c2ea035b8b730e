"""The transformer beside a slow one: logits, labels, loss and gradients."""

import pytest
import torch

from tests.support.reference_transformer import reference
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.loss import bit_loss
from videoar.model.transformer.network import VideoAR, flatten_bits, teacher_forcing_inputs

CFG = ModelConfig(
    depth=2, width=32, heads=2, ff_width=24, num_bits=4, scales=((1, 1), (2, 2), (3, 3)),
    text_width=12, max_text_tokens=8, word_buckets=64,
)  # fmt: skip
PROMPTS = ["a red circle moves to the left", "blue", ""]
WIDE = ((1, 1), (1, 2), (2, 4))
CASES = {
    "full": ({}, {}),
    "image": ({}, {"frames": 1}),
    "one prompt": ({}, {"prompts": PROMPTS[1:2]}),
    "dropped text": ({}, {"drop": [True, False, True]}),
    "flips": ({}, {"flips": 0.3}),
    "hidden frames": ({}, {"frames": 4, "keep": 0.5}),
    "window": ({"window": 1}, {"frames": 4}),
    "last scale": ({"history": "last_scale"}, {}),
    "last scale in a window, hidden frames": (
        {"history": "last_scale", "window": 2}, {"frames": 4, "keep": 0.5, "flips": 0.1},
    ),
    "centred positions": ({"rope": "center"}, {}),
    "running positions": ({"rope": "seq1d"}, {}),
    "inputs by area": ({"input_down": "area"}, {}),
    "one scale": ({"scales": ((2, 3),)}, {}),
    "another grid": ({"rope": "center"}, {"scales": WIDE}),
    "wider heads": ({"heads": 1, "rope_base": 50.0}, {}),
}  # fmt: skip


def make_model(**changes):
    torch.manual_seed(0)
    model = VideoAR(ModelConfig.model_validate({**CFG.model_dump(), **changes})).double()
    model.head.weight.data.mul_(50)  # logits that matter
    for weight in model.parameters():  # norms and biases start at ones and zeros
        if weight.ndim == 1:
            weight.data.add_(0.3 * torch.randn_like(weight))
    return model


class Case:
    """A batch of three samples, or fewer, as both implementations take it."""

    def __init__(self, cfg, *, frames=3, prompts=PROMPTS, scales=None, drop=None, flips=0, keep=1):
        draw = torch.Generator().manual_seed(1)
        self.scales, self.prompts, size = scales or cfg.scales, prompts, len(prompts)
        self.drop = torch.tensor(drop or [False] * size)
        shape = (size, cfg.num_bits, frames, *self.scales[-1])
        self.latent = 2 * torch.randn(shape, generator=draw)
        self.flips = [
            torch.rand(size, frames, h, w, cfg.num_bits, generator=draw) < flips
            for h, w in self.scales
        ]
        self.keep = (torch.rand(size, frames, frames, generator=draw) < keep) | torch.eye(
            frames, dtype=torch.bool
        )

    def logits_and_labels(self, model):
        frames = 1 + 4 * (self.latent.shape[2] - 1)
        layout = model.layout(frames, self.scales)
        pyramid = MultiScaleBSQ(model.cfg.num_bits, self.scales).pyramid(self.latent, self.flips)
        inputs = teacher_forcing_inputs(layout.scheme, pyramid.accumulated)
        text = model.encode_text(self.prompts, self.drop)
        logits = model(inputs, text, layout, keep_BTT=self.keep)
        return logits, flatten_bits(layout.scheme, pyramid.bits), layout

    def loss(self, model):
        logits, labels, layout = self.logits_and_labels(model)
        return bit_loss(logits, labels, layout.weight_l).loss

    def references(self, model, weights):
        for b, prompt in enumerate(self.prompts):
            words = model.text_encoder([prompt]).features_BPD[0]
            if self.drop[b]:
                words = weights["unconditional"][: len(words)]
            yield reference(
                model.cfg, weights, words, self.latent[b], scales=self.scales,
                flips=[flip[b] for flip in self.flips], keep_TT=self.keep[b],
            )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_labels_and_loss_are_those_of_a_slow_reference(name):
    changes, of_batch = CASES[name]
    model = make_model(**changes)
    case = Case(model.cfg, **of_batch)
    logits, labels, _ = case.logits_and_labels(model)
    losses = []
    for b, (own_logits, own_labels, loss) in enumerate(case.references(model, model.state_dict())):
        assert torch.equal(labels[b], own_labels)
        # Angles and weights of the loss are float32.
        torch.testing.assert_close(logits[b], own_logits, rtol=1e-6, atol=1e-6)
        losses.append(loss)
    assert case.loss(model).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


def test_gradients_are_those_of_the_slow_reference():
    model = make_model()
    case = Case(model.cfg, frames=2, drop=[False, True, False], flips=0.2)
    weights = dict(model.named_parameters())
    model_loss = case.loss(model)
    loss = sum(loss for _, _, loss in case.references(model, weights)) / len(PROMPTS)
    found = torch.autograd.grad(model_loss, weights.values())
    wanted = torch.autograd.grad(loss, weights.values())
    for name, own, expected in zip(weights, found, wanted, strict=True):
        assert (own - expected).norm() <= 1e-5 * expected.norm(), name
        assert expected.norm() > 0, name


def test_gradients_are_finite_differences_of_the_loss():
    model = make_model()
    case = Case(model.cfg, frames=2, prompts=PROMPTS[:2], drop=[False, True], flips=0.2, keep=0.7)
    case.loss(model).backward()
    draw, step = torch.Generator().manual_seed(2), 1e-5
    for name, weight in model.named_parameters():
        flat, gradient = weight.data.view(-1), weight.grad.view(-1)
        used = gradient.nonzero()[:, 0]  # not rows of embeddings without a token
        i = used[torch.randint(len(used), (), generator=draw)]
        value, around = flat[i].item(), []
        for moved in (value + step, value - step):
            flat[i] = moved
            with torch.no_grad():
                around.append(case.loss(model).item())
        flat[i] = value
        slope = (around[0] - around[1]) / (2 * step)
        assert slope == pytest.approx(gradient[i].item(), rel=1e-5, abs=1e-9), name
