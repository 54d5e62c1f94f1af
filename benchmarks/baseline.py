"""The classic pix2pix step and loop, as most people run them: baseline of speed and reference of correctness.

Eager PyTorch in the order of the public PyTorch code: NCHW images, torch's default Adam, separate passes of D over the
fake and the real pair, `.item()` on every loss in every step, pairs opened with Pillow when they are needed. The
networks are those of p2pzoo, which are plain PyTorch; its training code is not used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

JITTER = 286 / 256


class Classic:
    """One training step: D on fake and real, then G.

    weight  weight of the L1 loss
    call_D  calls D on x and y; by default D takes both and returns a list of maps, of which the first is used
    """

    def __init__(self, G: nn.Module, D: nn.Module, *, weight: float = 100.0, call_D: Any = None, lr: float = 2e-4):
        self.G, self.D, self.weight = G, D, weight
        self.call_D = call_D or (lambda x, y: D(x, y)[0])
        self.optimizer_G = torch.optim.Adam(G.parameters(), lr=lr, betas=(0.5, 0.999))
        self.optimizer_D = torch.optim.Adam(D.parameters(), lr=lr, betas=(0.5, 0.999))
        self.log_loss = nn.BCEWithLogitsLoss()
        self.l1 = nn.L1Loss()

    def gan(self, logits: Tensor, real: bool) -> Tensor:
        label = torch.tensor(1.0 if real else 0.0, dtype=logits.dtype, device=logits.device)
        loss: Tensor = self.log_loss(logits, label.expand_as(logits))
        return loss

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        y_hat = self.G(x)

        for parameter in self.D.parameters():
            parameter.requires_grad_(True)
        self.optimizer_D.zero_grad()
        fake = self.gan(self.call_D(x, y_hat.detach()), False)
        real = self.gan(self.call_D(x, y), True)
        ((fake + real) * 0.5).backward()
        self.optimizer_D.step()

        for parameter in self.D.parameters():
            parameter.requires_grad_(False)
        self.optimizer_G.zero_grad()
        gan = self.gan(self.call_D(x, y_hat), True)
        l1 = self.l1(y_hat, y)
        (gan + l1 * self.weight).backward()
        self.optimizer_G.step()
        return {"D.fake": fake.item(), "D.real": real.item(), "G.gan": gan.item(), "G.l1": l1.item()}


def batches(folder: Path, size: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the A|B pairs in a folder forever: shuffled, jittered, flipped as in §3.3; NCHW in [-1, 1]."""
    files = sorted(folder.glob("*.jpg"))
    while True:
        random.shuffle(files)
        for start in range(0, len(files) - batch + 1, batch):
            pairs = [open_pair(file, size) for file in files[start : start + batch]]
            yield torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def open_pair(file: Path, size: int) -> tuple[Tensor, Tensor]:
    with Image.open(file) as opened:
        both = opened.convert("RGB")
    width = both.width // 2
    load = round(size * JITTER)
    top, left, flip = random.randint(0, load - size), random.randint(0, load - size), random.random() < 0.5
    halves = []
    for box in ((0, 0, width, both.height), (width, 0, 2 * width, both.height)):
        image = both.crop(box).resize((load, load), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        halves.append((scaled - 0.5) / 0.5)
    return halves[0], halves[1]
