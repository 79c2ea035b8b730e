"""Perceptual features of a tokenizer's loss from EfficientNet-Lite0.

Shape suffixes: N images, H W height and width.
"""

from torch import Tensor, nn

from videoar.model.pretrained.lite0 import Lite0
from videoar.model.tokenizer.lpips import normalize_features


class Lite0Perceptual(nn.Module):
    """The early blocks of EfficientNet-Lite0, trained on ImageNet, at 1/2, 1/4 and 1/8 of the size.

    Images keep their size: the early blocks see edges and textures, whatever the picture shows.
    Source: LPIPS (arXiv 1801.03924), with another trunk and without trained heads.
    """

    def __init__(self, net: Lite0) -> None:
        super().__init__()
        self.net = net

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """Return the last map of each size, of images in [-1, 1]."""
        # from [-1, 1] to the network's own (level - 127) / 128
        maps = self.net.maps((127.5 * images_N3HW + 0.5) / 128)
        return [normalize_features(m) for i, m in zip(range(5), maps, strict=False) if i % 2 == 0]
