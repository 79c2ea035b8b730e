import torch

from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR
from videoar.training.config import OptimizerConfig
from videoar.training.optimizer import make_adamw


def names_of(model, optimizer):
    """Return the names of the weights in the order of the optimizer, and of those that decay."""
    name_of = {id(weight): name for name, weight in model.named_parameters()}
    groups = [
        (group["weight_decay"], [name_of[id(weight)] for weight in group["params"]])
        for group in optimizer.param_groups
    ]
    ordered = [name for _, names in groups for name in names]
    return ordered, {name for decay, names in groups if decay for name in names}


def test_embeddings_norms_and_biases_do_not_decay():
    model = VideoAR(PRESETS["tiny"])
    _, decayed = names_of(model, make_adamw(model, OptimizerConfig()))
    layer = {"attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down"}
    of_layers = {f"layers.{i}.{name}.weight" for i in range(2) for name in layer}
    others = {"text_mlp.0.weight", "text_mlp.2.weight", "features.weight", "head.weight"}
    assert decayed == of_layers | others
    step = OptimizerConfig(learning_rate=0.1, weight_decay=1.0)
    optimizer = make_adamw(model, step)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer.step()
    for name, weight in model.named_parameters():
        kept = 0.9 if name in decayed else 1.0
        torch.testing.assert_close(weight.detach(), kept * before[name])


def test_kernels_of_a_tokenizer_decay():
    net = VideoTokenizer(TOKENIZERS["tiny"])
    _, decayed = names_of(net, make_adamw(net, OptimizerConfig()))
    assert decayed == {name for name, weight in net.named_parameters() if weight.ndim > 1}


def test_numbers_of_weights_in_checkpoints_are_matrices_then_vectors_as_in_the_first_version():
    model = VideoAR(PRESETS["tiny"])
    ordered, _ = names_of(model, make_adamw(model, OptimizerConfig()))
    weights = dict(model.named_parameters())
    matrices = [name for name, weight in weights.items() if weight.ndim > 1]
    assert ordered == matrices + [name for name in weights if name not in matrices]


def test_frozen_weights_are_left_out():
    model = VideoAR(PRESETS["tiny"])
    model.text_encoder.requires_grad_(False)
    ordered, _ = names_of(model, make_adamw(model, OptimizerConfig()))
    assert set(ordered) == {n for n, _ in model.named_parameters() if "text_encoder" not in n}
