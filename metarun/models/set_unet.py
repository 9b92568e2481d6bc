"""Small U-Net that denoises an image, conditioned on a set of images of the same class."""

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
"""Encoding of S sets: a feature map [S, width, h, w], tokens [S, M, 2 width] and their mask [S, M], 1 for real ones."""

GROUPS = 8
"""Number of groups in group normalisation."""


class SetUNet(nn.Module):
    """U-Net that maps noisy images to one logit per pixel, conditioned on a set of clean images.

    Tiles of ``patch`` x ``patch`` pixels become channels. A U-Net with two levels (Ronneberger et al. 2015,
    arXiv:1505.04597) works on these. Each block reads the time t through a shift and a scale of its normalised features
    (Dhariwal & Nichol 2021, arXiv:2105.05233, section 3). Separate convolutions encode the set. The mean of its
    upper-level feature maps is added to the first feature map of the noisy image. Each position of its lower-level
    feature maps is a token, and after each lower block the positions attend to these tokens and to each other. The
    order of the set has no effect, and it may be empty.

    Args:
        spec: Shapes of the task.
        width: Channels of the upper level. The lower level has twice as many.
        patch: Side of a tile in pixels.
        upper: Residual blocks of the upper level on the way down, and as many on the way up.
        lower: Residual blocks of the lower level.
        heads: Number of attention heads.

    Raises:
        UserError: ``patch``, ``width`` or ``heads`` does not fit the images or each other.
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
            "in each direction",
        )
        require(
            width % GROUPS == 0 and 2 * width % heads == 0,
            f"model.width={width} must be a multiple of {GROUPS}, and twice as much a multiple of model.heads={heads}",
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
        self.looks = nn.ModuleList(SetAttention(deep, heads) for _ in range(lower))
        self.enlarge = nn.Conv2d(deep, width, 3, padding=1)
        self.up = nn.ModuleList(Residual(2 * width if i == 0 else width, width, deep) for i in range(upper))
        last = nn.Conv2d(width, tiles, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), last)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(self, sets: Tensor, counts: Tensor) -> Context:
        """Encode sets of clean images.

        Args:
            sets: Images in -1..1, [S, K, C, H, W].
            counts: 1 for the images that belong to a set, 0 for padding, [S, K].

        Returns:
            Context for :meth:`forward`.
        """
        upper = self.set_upper(self.first_of_set(self.tiled(sets.flatten(0, 1))))
        lower = self.set_lower(self.set_down(upper))
        weight = counts / counts.sum(1, keepdim=True).clamp(min=1)
        mean = (self.set_map(upper).unflatten(0, sets.shape[:2]) * weight[..., None, None, None]).sum(1)
        tokens = lower.flatten(2).transpose(1, 2) + self.place
        counted = counts[..., None].expand(-1, -1, tokens.shape[1])
        return mean, tokens.reshape(len(sets), -1, tokens.shape[2]), counted.flatten(1)

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Return logits [N, C, H, W] for noisy images [N, C, H, W], times [N] in 0..1 and the context of N sets."""
        mean, tokens, counted = context
        time = self.clock(time_embedding(t, self.width))
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
        """Move tiles to channels: [N, C, H, W] -> [N, C patch^2, H / patch, W / patch]."""
        return F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)


class Residual(nn.Module):
    """Residual block of two 3x3 convolutions, with features in between that the time embedding shifts and scales."""

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


class SetAttention(nn.Module):
    """Attention of the positions of a feature map [N, width, h, w] to each other and to tokens [N, M, width]."""

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


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Embed times [N] in 0..1 by sines and cosines of ``width`` / 2 frequencies from 1 to 1000, [N, width]."""
    rates = torch.exp(torch.linspace(0, log(1000), width // 2, device=t.device, dtype=t.dtype))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
