"""Discriminators that are U-Nets of residual blocks: that of U-Net GAN, and that of OASIS.

The papers give their convolutions spectral norm: `[train] spectral_norm = "discriminator"`.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from p2pzoo_unet_d.residual_unet import ResidualUNet

Count = Annotated[int, Field(ge=1)]


class UNetDiscriminator(nn.Module):
    """The discriminator of U-Net GAN (Schönfeld et al. 2020, arXiv:2002.12655, §3.1), on BigGAN's residual blocks.

    Its two outputs go through the recipe's GAN loss, each with the same weight, as the scales of a multi-scale D:

        the image   of the encoder: ReLU, the sum over all positions, and a linear layer to one logit
        each pixel  of the decoder: a 1×1 convolution to logits of the image's size

    The paper's equations add the losses of both; its code takes the mean, as this zoo's GAN losses do. Its D is
    unconditional or gets a class; x is concatenated here, as in the other discriminators of the zoo.

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    conditional  D sees x and y, concatenated on channels; false: y alone
    width        channels of the first block; block i has min(2**i, 16) · width, and the decoder the same backwards
    levels       blocks of the encoder, and of the decoder. The paper has 5 for 128 px and 6 for 256 px; its code then
                 has 8 · width in blocks 3 and 4, and 16 · width in block 5 alone

    `forward` and `features` take

        x  (B, in_channels, H, W) in [-1, 1]; ignored unless conditional
        y  (B, out_channels, H, W) in [-1, 1]

    Raises ValueError for sides that are no multiples of 2**levels, here and in `forward` and `features`.

    >>> D = UNetDiscriminator(3, 3, (32, 32), width=4, levels=2)
    >>> [logits.shape for logits in D(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))]
    [torch.Size([1, 1, 1, 1]), torch.Size([1, 1, 32, 32])]
    """

    receptive_field = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        conditional: bool = True,
        width: Count = 64,
        levels: Count = 5,
    ) -> None:
        super().__init__()
        self.conditional = conditional
        down = [width * min(2**i, 16) for i in range(levels)]
        channels = in_channels + out_channels if conditional else out_channels
        self.body = ResidualUNet(channels, down, [*reversed(down[:-1]), width], slope=0.0)
        self.size_divisor = self.body.size_divisor
        self.body.check(size)
        self.to_image_logit = nn.Linear(down[-1], 1)
        self.to_pixel_logits = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """[logits of the images (B, 1, 1, 1), logits of the pixels (B, 1, H, W)]."""
        encoded, decoded = self.features(x, y)
        summed = F.relu(encoded[-1]).sum((2, 3))
        return [self.to_image_logit(summed)[:, :, None, None], self.to_pixel_logits(decoded[-1])]

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """[activations after each block of the encoder, activations after each block of the decoder]."""
        self.body.check(y.shape[2:])
        return [*self.body(torch.cat([x, y], dim=1) if self.conditional else y)]


class OasisDiscriminator(nn.Module):
    """The segmentation discriminator of OASIS (Schönfeld et al. 2021, arXiv:2012.04781, §3.2 and appendix).

    A U-Net gives N + 1 logits for each pixel: of the N classes, if the pixel is real, and of "fake". The zoo's GAN
    losses take maps of one logit, so `forward` gives two log-odds of the softmax p of these:

        own class  log p_c / (1 − p_c) of the pixel's label c: is it a real pixel of its class?
        real       log (1 − p_fake) / p_fake: is it a real pixel of any class?

    −log σ(own class) and −log σ(−real) are the cross-entropies of the paper, which the GAN loss `oasis` minimises. Any
    other GAN loss trains both as binary decisions. At pixels without a label, both are "real".

    in_channels, out_channels, size  channels of x, channels of y, and (H, W) of both
    num_classes  N, the number of classes of the dataset. Labels outside 0 … N − 1, such as 255, are no labels
    conditional  D sees x and y, concatenated on channels; false, as in the paper: y alone
    width        channels of the first two blocks, 128 in the paper; the next two have twice, all others four times as
                 many; the decoder has the same backwards, and width // 2 in the last block
    levels       blocks of the encoder, and of the decoder, 6 in the paper

    `forward` and `features` take

        x       (B, in_channels, H, W) in [-1, 1]; ignored unless conditional
        y       (B, out_channels, H, W) in [-1, 1]
        labels  (B, H, W) int64, classes of the pixels of y

    Raises ValueError for sides that are no multiples of 2**levels, here and in `forward` and `features`.

    >>> D = OasisDiscriminator(3, 3, (32, 32), num_classes=9, width=4, levels=2)
    >>> x = y = torch.zeros(1, 3, 32, 32)
    >>> labels = torch.zeros(1, 32, 32, dtype=torch.long)
    >>> [logits.shape for logits in D(x, y, labels)], D.features(x, y, labels)[0][-1].shape
    ([torch.Size([1, 1, 32, 32]), torch.Size([1, 1, 32, 32])], torch.Size([1, 10, 32, 32]))
    """

    receptive_field = None
    segments = True  # its two outputs are those of a segmentation, which the GAN loss `oasis` keeps apart

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        num_classes: Count,
        conditional: bool = False,
        width: Annotated[int, Field(ge=2)] = 128,
        levels: Count = 6,
    ) -> None:
        super().__init__()
        self.conditional, self.num_classes = conditional, num_classes
        down = [width * 2 ** min(i // 2, 2) for i in range(levels)]
        channels = in_channels + out_channels if conditional else out_channels
        self.body = ResidualUNet(channels, down, [*reversed(down[:-1]), width // 2], slope=0.2)
        self.size_divisor = self.body.size_divisor
        self.body.check(size)
        self.to_classes = nn.Conv2d(width // 2, num_classes + 1, 1)

    def forward(self, x: Tensor, y: Tensor, labels: Tensor) -> list[Tensor]:
        """[log-odds of the own class, log-odds of real], (B, 1, H, W) each."""
        return self.decide(self.features(x, y, labels)[0][-1], labels)

    def decide(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """The outputs of `forward` from the N + 1 logits (B, N + 1, H, W)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # of differences: bf16 has too few digits
        classes = torch.arange(self.num_classes + 1, device=logits.device)[None, :, None, None]
        is_real = classes < self.num_classes
        is_own = classes == labels[:, None]
        is_labelled = (is_own & is_real).any(1, keepdim=True)
        return [log_odds(logits, is_real & (is_own | ~is_labelled)), log_odds(logits, is_real.expand(logits.shape))]

    def features(self, x: Tensor, y: Tensor, labels: Tensor) -> list[list[Tensor]]:
        """[activations after each block, and the N + 1 logits (B, N + 1, H, W); these logits], one list per output."""
        self.body.check(y.shape[2:])
        encoded, decoded = self.body(torch.cat([x, y], dim=1) if self.conditional else y)
        logits = self.to_classes(decoded[-1])
        return [[*encoded, *decoded, logits], [logits]]


def log_odds(logits: Tensor, chosen: Tensor) -> Tensor:
    """log p / (1 − p), (B, 1, H, W), of the probability p of the chosen classes under the softmax of logits (B, N, …).

    >>> log_odds(torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1), torch.tensor([1, 0, 0]).bool().view(1, 3, 1, 1))
    tensor([[[[0.]]]])
    """
    inside, outside = (
        logits.masked_fill(hidden, -torch.inf).logsumexp(1, keepdim=True) for hidden in (~chosen, chosen)
    )
    return inside - outside
