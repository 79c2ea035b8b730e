"""A slow transformer for one sample: loops over blocks, own positions, mask and rotation.

It shares the values of a config and the tensors of a state dict with `VideoAR`, and no code. Bits
and rebuilt latents are float32, as they are defined; everything else has the type of the weights.

P words, D text width, L tokens of the video, K bits, T latent frames, H W latent grid.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

TEXT = -1


@dataclass
class Token:
    """One position of the sequence; `frame` is TEXT for a word."""

    frame: int
    scale: int
    position: tuple[float, float, float]


def reference(cfg, weights, words_PD, latent_KTHW, *, scales=None, flips=None, keep_TT=None):
    """Return logits [L, K, 2], labels [L, K] and loss of one sample under teacher forcing.

    Args:
        cfg: a `ModelConfig`.
        weights: state dict.
        words_PD: text features, without padding.
        latent_KTHW: latent.
        scales: other scales than the config's.
        flips: per scale bool [T, h, w, K].
        keep_TT: which past frames each frame keeps.
    """
    scales = scales or cfg.scales
    video, inputs, labels = _blocks(cfg, weights, latent_KTHW, scales, flips, len(words_PD))
    text = [Token(TEXT, 0, (i, i, i)) for i in range(len(words_PD))]
    words = _norm(words_PD, weights["text_norm.weight"])
    words = F.gelu(_linear(words, weights, "text_mlp.0"))
    x = torch.cat([_linear(words, weights, "text_mlp.2"), *inputs])
    tokens = text + video
    pairs = [
        [_sees(cfg, scales, q, k, keep_TT) for k in enumerate(tokens)] for q in enumerate(tokens)
    ]
    for i in range(cfg.depth):
        own = {n.removeprefix(f"layers.{i}."): w for n, w in weights.items() if f"layers.{i}." in n}
        x = _layer(x, own, cfg, torch.tensor(pairs), [token.position for token in tokens])
    logits = _linear(_norm(x[len(text) :], weights["norm.weight"]), weights, "head")
    logits_LK2 = logits.reshape(len(video), cfg.num_bits, 2)
    labels_LK = torch.cat(labels)
    nats = -logits_LK2.log_softmax(-1).gather(-1, labels_LK[..., None].long()).mean(dim=(1, 2))
    shares = [1 / math.sqrt(math.prod(scales[token.scale])) for token in video]
    loss = sum(share * nat for share, nat in zip(shares, nats, strict=True)) / sum(shares)
    return logits_LK2, labels_LK, loss


def _blocks(cfg, weights, latent_KTHW, scales, flips, prefix):
    """Quantize frame by frame; return tokens, embedded inputs and labels of every block."""
    tokens, inputs, labels = [], [], []
    (height, width), finished = scales[-1], None
    for t in range(latent_KTHW.shape[1]):
        rebuilt = torch.zeros(cfg.num_bits, height, width)
        for k, (h, w) in enumerate(scales):
            source = rebuilt if k else finished
            if source is None:
                x = weights["start"].expand(h * w, -1)
            else:
                is_area = cfg.input_down == "area"
                down = F.adaptive_avg_pool2d if is_area else _bilinear
                x = down(source, (h, w)).flatten(1).T.to(weights["start"].dtype)
                x = _linear(x, weights, "features")
            inputs.append(x + weights["scales.weight"][k])
            for place in range(h * w):
                row, column = divmod(place, w)
                if cfg.rope == "center":
                    row, column = (
                        (i + 0.5) * a / b - 0.5
                        for i, a, b in ((row, height, h), (column, width, w))
                    )
                at = (len(tokens),) * 3 if cfg.rope == "seq1d" else (t, row, column)
                tokens.append(Token(t, k, tuple(axis + prefix for axis in at)))
            bits = F.adaptive_avg_pool2d(latent_KTHW[:, t].float() - rebuilt, (h, w)) > 0
            labels.append(bits.flatten(1).T)
            flip = flips[k][t].permute(2, 0, 1) if flips else torch.zeros_like(bits)
            rebuilt = rebuilt + _bilinear(
                (2.0 * (bits ^ flip) - 1) / math.sqrt(cfg.num_bits), (height, width)
            )
        finished = rebuilt
    return tokens, inputs, labels


def _bilinear(x_Khw, size):
    if x_Khw.shape[1:] == size:
        return x_Khw
    return F.interpolate(x_Khw[None], size=size, mode="bilinear", align_corners=False)[0]


def _sees(cfg, scales, query, key, keep_TT):
    """Return whether one numbered token attends to another."""
    (i, q), (j, k) = query, key
    if k.frame == TEXT:
        return q.frame != TEXT or j <= i
    if q.frame == TEXT or k.frame > q.frame:
        return False
    if q.frame == k.frame:
        return k.scale <= q.scale
    if cfg.window is not None and q.frame - k.frame > cfg.window:
        return False
    if cfg.history == "last_scale" and k.scale < len(scales) - 1:
        return False
    return keep_TT is None or bool(keep_TT[q.frame, k.frame])


def _layer(x_LC, weights, cfg, sees_LL, positions):
    """One head after the other; rotation as a product of complex numbers."""
    size = cfg.width // cfg.heads
    qkv = _norm(x_LC, weights["attention_norm.weight"]) @ weights["attention.qkv.weight"].T
    heads = []
    for head in range(cfg.heads):
        start = [part * cfg.width + head * size for part in range(3)]
        q, k, v = (qkv[:, at : at + size] for at in start)
        q = _rotate(_norm(q, weights["attention.query_norm.weight"]), positions, cfg.rope_base)
        k = _rotate(_norm(k, weights["attention.key_norm.weight"]), positions, cfg.rope_base)
        scores = (q @ k.T / math.sqrt(size)).masked_fill(~sees_LL, -math.inf)
        heads.append(scores.softmax(1) @ v)
    x_LC = x_LC + torch.cat(heads, 1) @ weights["attention.out.weight"].T
    hidden = (
        _norm(x_LC, weights["feed_forward_norm.weight"]) @ weights["feed_forward.gate_up.weight"].T
    )
    gate, up = hidden[:, : cfg.ff_width], hidden[:, cfg.ff_width :]
    return x_LC + (gate * gate.sigmoid() * up) @ weights["feed_forward.down.weight"].T


def _rotate(x_LE, positions, base):
    half = x_LE.shape[1] // 2
    angles = [
        [at["thw".index("thwhwthw"[j % 8])] * base ** (-j / half) for j in range(half)]
        for at in positions
    ]
    turn = torch.polar(torch.ones(len(angles), half).to(x_LE), torch.tensor(angles).to(x_LE))
    turned = torch.complex(x_LE[:, :half], x_LE[:, half:]) * turn
    return torch.cat([turned.real, turned.imag], 1)


def _norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
