"""A small U-Net that restores a noisy image, told what the image is of by a set of images of the same class."""

from __future__ import annotations

from math import log
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.types import Positive

Context = tuple[Tensor, Tensor, Tensor]
"""What was read of S sets: a map [S, width, h, w], tokens [S, M, 2 width], and which of these count, [S, M]."""

GROUPS = 8
"""Of group normalisation."""


class SetUNet(nn.Module):
    """Noisy images and a set of clean ones -> what is left to say of each pixel, as a logit.

    Images are cut into tiles of ``patch`` x ``patch`` pixels, which become channels; a U-Net of two levels (Ronneberger
    et al. 2015, arXiv:1505.04597), ``width`` and twice that wide, works on these: ``upper`` residual blocks on the way
    down and as many on the way up, ``lower`` between them. Each block reads the time t by a shift and a scale of its
    normalised features (Dhariwal & Nichol 2021, arXiv:2105.05233, section 3). The set is read by convolutions of its
    own: the mean of its first maps is added to the first map of the noisy image, pixel by pixel, and each place of each
    image's second map is a token. After each block of the lower level its places attend, with ``heads`` heads, to these
    tokens and to each other. The order of the set has no effect, and it may be empty.

    :meth:`read`: sets [S, K, C, H, W] in -1..1 -> context. :meth:`forward`: x [N, C, H, W], t [N] in 0..1, context of N
    sets -> logits [N, C, H, W].
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    role: ClassVar[str] = "denoiser"

    def __init__(
        self, spec: Spec, *, width: Positive, patch: Positive, upper: Positive, lower: Positive, heads: Positive
    ) -> None:
        super().__init__()
        channels, height, image_width = spec.input_shape
        require(
            height % (2 * patch) == 0 and image_width % (2 * patch) == 0,
            f"model.patch={patch}: images of {height}x{image_width} pixels cannot be cut into an even number of tiles "
            "each way",
        )
        require(
            width % GROUPS == 0 and 2 * width % heads == 0,
            f"model.width={width} must be a multiple of {GROUPS}, and twice that of model.heads={heads}",
        )
        self.patch, self.width = patch, width
        tiles, deep = channels * patch**2, 2 * width
        place = height // (2 * patch), image_width // (2 * patch)
        self.clock = nn.Sequential(nn.Linear(width, deep), nn.SiLU(), nn.Linear(deep, deep), nn.SiLU())
        self.first, self.first_of_set = (nn.Conv2d(tiles, width, 3, padding=1) for _ in range(2))
        self.set_upper = Residual(width, width, None)
        self.set_down = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.set_lower = Residual(deep, deep, None)
        self.set_map = nn.Conv2d(width, width, 1)
        self.place = nn.Parameter(torch.randn(place[0] * place[1], deep) / deep**0.5)
        self.down = nn.ModuleList(Residual(width, width, deep) for _ in range(upper))
        self.shrink = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.lower = nn.ModuleList(Residual(deep, deep, deep) for _ in range(lower))
        self.looks = nn.ModuleList(Look(deep, heads) for _ in range(lower))
        self.enlarge = nn.Conv2d(deep, width, 3, padding=1)
        self.up = nn.ModuleList(Residual(2 * width if i == 0 else width, width, deep) for i in range(upper))
        last = nn.Conv2d(width, tiles, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), last)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(self, sets: Tensor, counts: Tensor) -> Context:
        """Of ``sets`` [S, K, C, H, W], the images where ``counts`` [S, K] is 1."""
        upper = self.set_upper(self.first_of_set(self.tiled(sets.flatten(0, 1))))
        lower = self.set_lower(self.set_down(upper))
        weight = counts / counts.sum(1, keepdim=True).clamp(min=1)
        mean = (self.set_map(upper).unflatten(0, sets.shape[:2]) * weight[..., None, None, None]).sum(1)
        tokens = lower.flatten(2).transpose(1, 2) + self.place
        counted = counts[..., None].expand(-1, -1, tokens.shape[1])
        return mean, tokens.reshape(len(sets), -1, tokens.shape[2]), counted.flatten(1)

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        mean, tokens, counted = context
        time = self.clock(waves(t, self.width))
        x = self.first(self.tiled(x)) + mean
        for block in self.down:
            x = block(x, time)
        skip, x = x, self.shrink(x)
        for block, look in zip(self.lower, self.looks, strict=True):
            x = look(block(x, time), tokens, counted, self.place)
        x = torch.cat([self.enlarge(F.interpolate(x, scale_factor=2.0)), skip], 1)
        for block in self.up:
            x = block(x, time)
        return F.pixel_shuffle(self.last(x), self.patch)

    def tiled(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C patch^2, H / patch, W / patch]."""
        return F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)


class Residual(nn.Module):
    """Two 3x3 convolutions beside an identity; the features between are shifted and scaled by what ``time`` says."""

    def __init__(self, inputs: int, width: int, time: int | None) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, width, 3, padding=1))
        self.norm = nn.GroupNorm(GROUPS, width)
        last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.two = nn.Sequential(nn.SiLU(), last)
        self.modulation = None if time is None else nn.Linear(time, 2 * width)
        self.straight = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        y = self.norm(self.one(x))
        if self.modulation is not None:
            scale, shift = self.modulation(time)[..., None, None].chunk(2, 1)
            y = y * (1 + scale) + shift
        return self.straight(x) + self.two(y)


class Look(nn.Module):
    """Each place of a map [N, width, h, w] attends to all places and to tokens [N, M, width]; added to what it was."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(GROUPS, width)
        self.own, self.key_value = nn.Linear(width, 3 * width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, tokens: Tensor, counted: Tensor, place: Tensor) -> Tensor:
        query, own_key, own_value = self.own(self.norm(x).flatten(2).transpose(1, 2) + place).chunk(3, -1)
        key, value = self.key_value(tokens).chunk(2, -1)
        key, value = torch.cat([own_key, key], 1), torch.cat([own_value, value], 1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        unseen = F.pad(torch.zeros_like(counted).masked_fill(counted == 0, -torch.inf), (own_key.shape[1], 0))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=unseen[:, None, None]).transpose(1, 2).flatten(2)
        return x + self.out(found).transpose(1, 2).unflatten(2, x.shape[2:])


def waves(t: Tensor, width: int) -> Tensor:
    """t [N] in 0..1 as sines and cosines of ``width`` / 2 frequencies, 1 to 1000 (Vaswani et al. 2017): [N, width]."""
    rates = torch.exp(torch.linspace(0, log(1000), width // 2, device=t.device, dtype=t.dtype))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
