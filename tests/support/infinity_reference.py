"""Infinity's image tokenizer, slow and plain: one call per layer, weights by their names.

Layers as in FoundationVision/Infinity, `models/bsq_vae/flux_vqgan.py`, with `cnn_type="2d"` and no
attention. The weights are random.
"""

import torch
import torch.nn.functional as F


class InfinityReference:
    """Encoder and decoder of images.

    Args:
        cfg: of the tokenizer with the same numbers.
        wrapped: name weights as their own files do (`conv_in.conv.weight`), or without the wrapper.
    """

    def __init__(self, cfg, *, wrapped):
        self.cfg, self.wrapped = cfg, wrapped
        self.weights = {}
        self.generator = torch.Generator().manual_seed(0)
        self.is_drawing = True
        image = torch.zeros(1, 3, *cfg.size_px, dtype=torch.float64)
        self.decode(self.encode(image))
        self.is_drawing = False

    def encode(self, x):
        x = self.conv("encoder.conv_in", x, self.cfg.base_width)
        for level, multiplier in enumerate(self.cfg.multipliers):
            width = self.cfg.base_width * multiplier
            for block in range(self.cfg.num_res_blocks):
                x = self.block(f"encoder.down.{level}.block.{block}", x, width)
            if level in self.cfg.space_downs:
                x = F.pad(x, (0, 1, 0, 1))
                x = self.conv(f"encoder.down.{level}.downsample.conv", x, width, stride=2, pad=0)
        x = self.block("encoder.mid.block_1", x, width)
        x = self.block("encoder.mid.block_2", x, width)
        x = F.silu(self.norm("encoder.norm_out", x))
        return self.conv("encoder.conv_out", x, self.cfg.num_bits)

    def decode(self, x):
        width = self.cfg.base_width * self.cfg.multipliers[-1]
        x = self.conv("decoder.conv_in", x, width)
        x = self.block("decoder.mid.block_1", x, width)
        x = self.block("decoder.mid.block_2", x, width)
        for level, multiplier in reversed(list(enumerate(self.cfg.multipliers))):
            width = self.cfg.base_width * multiplier
            for block in range(self.cfg.num_res_blocks + 1):
                x = self.block(f"decoder.up.{level}.block.{block}", x, width)
            if level - 1 in self.cfg.space_downs:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
                x = self.conv(f"decoder.up.{level}.upsample.conv", x, width)
        x = F.silu(self.norm("decoder.norm_out", x))
        return self.conv("decoder.conv_out", x, 3)

    def block(self, name, x, width):
        y = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), width)
        y = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", y)), width)
        if x.shape[1] != width:
            x = self.conv(f"{name}.nin_shortcut", x, width, size=1, pad=0)
        return x + y

    def conv(self, name, x, width, *, size=3, stride=1, pad=1):
        weight = self.weight(f"{name}.conv.weight", width, x.shape[1], size, size)
        bias = self.weight(f"{name}.conv.bias", width)
        return F.conv2d(x, weight, bias, stride=stride, padding=pad)

    def norm(self, name, x):
        weight = self.weight(f"{name}.norm.weight", x.shape[1])
        bias = self.weight(f"{name}.norm.bias", x.shape[1])
        return F.group_norm(x, self.cfg.norm_groups, weight, bias, eps=1e-6)

    def weight(self, name, *shape):
        if not self.wrapped:
            *layers, _wrapper, last = name.split(".")
            name = ".".join([*layers, last])
        if self.is_drawing:
            drawn = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
            self.weights[name] = 0.2 * drawn
        return self.weights[name]
