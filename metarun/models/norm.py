"""Batch normalisation with a named policy for its statistics.

``transductive``  statistics of the batch at hand, at test too (MAML, Relation Networks);
``support``       statistics of the support set, also for the query examples;
``running``       batch statistics while meta-training, their running average at test (Prototypical Networks);
``frozen``        the running averages that the model comes with, at all times (fine-tuning of pretrained encoders).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.kernels.fusion import image_patches, is_fusion_enabled
from metarun.kernels.norm import batch_norm
from metarun.types import NormPolicy

log = logging.getLogger("metarun")

COLUMNS = 256
"""Columns of :func:`gram` that are summed in the dtype of the rows."""


class BatchNorm(nn.Module):
    """Batch normalisation over all dimensions except the channels (dimension 1).

    Args:
        channels: Number of channels.
        scale: If true, the layer has a learned scale. MAML's networks have none.
        shift: If true, the layer has a learned shift.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, scale: bool = True, shift: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if scale else None
        self.bias = nn.Parameter(torch.zeros(channels)) if shift else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = 0.1, 1e-5
        self.policy: NormPolicy = "running"
        self.rows: int | None = None
        """Number of examples from the first one that statistics are computed from; ``None`` for all."""

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is None:
            if self.policy in ("running", "frozen"):
                mean, var, batch = self.running_mean, self.running_var, self.training and self.policy == "running"
            else:
                mean, var, batch = None, None, True
            if batch and x.device.type == "cpu" and x.dtype == self.running_mean.dtype and is_channels_last(x):
                return self._by_rows(x)
            return F.batch_norm(x, mean, var, self.weight, self.bias, batch, self.momentum, self.eps)
        measured = x[: self.rows]
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = measured.mean(over, keepdim=True)
        var = (measured - mean).square().mean(over, keepdim=True)
        x = (x - mean) * torch.rsqrt(var + self.eps)
        if self.weight is not None:
            x = x * self.weight.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)

    def _by_rows(self, x: Tensor) -> Tensor:
        """Normalise channels-last images by their own statistics, which torch's kernel for them computes inexactly."""
        y, mean, r = batch_norm(x, self.weight, self.bias, self.eps)
        if self.policy == "running":
            self._observe(mean, (r.pow(-2) - self.eps).clamp(min=0), x.numel() // x.shape[1])
        return y

    def _observe(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Update the running statistics by the mean and the biased variance of a batch of ``count`` values."""
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)

    def after(self, conv: nn.Module, x: Tensor) -> Tensor:
        """Return ``self(conv(x))``, fused into one matrix product if possible.

        The outputs of a convolution are W P for weights W and image patches P. Their mean is W mean(P) and their
        variance is the diagonal of W cov(P) W^T, so normalisation only changes W. If a patch has fewer values than an
        output has channels, as in a first layer, this reads less memory. Its derivatives of any order are those of
        matrix products.

        Args:
            conv: Convolution before this layer.
            x: Images, [N, C, H, W].
        """
        if not is_fusion_enabled() or not self.can_fuse(conv):
            return self(conv(x))
        assert isinstance(conv, nn.Conv2d)
        assert not isinstance(conv.padding, str)
        columns, size = image_patches(x, conv.kernel_size, conv.stride, conv.padding)
        first = None if self.rows is None else self.rows * size[0] * size[1]
        centre = columns[:, :first].mean(1, keepdim=True)
        columns = columns - centre
        measured = columns[:, :first]
        count = measured.shape[1]
        w = conv.weight.flatten(1)
        # Neighbouring pixels are alike, so most of the covariance cancels in the variance of their differences.
        products = gram(measured)
        exact_w = w.to(products.dtype)
        var = ((exact_w @ (products / count)) * exact_w).sum(1).to(w.dtype)
        if self.rows is None and self.policy == "running":
            self._observe(w @ centre[:, 0], var, count)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        w = w * scale[:, None]
        if self.bias is not None:  # as one more weight, which saves a pass over the outputs
            w, columns = torch.cat([w, self.bias[:, None]], 1), F.pad(columns, [0, 0, 0, 1], value=1.0)
        y = columns.T @ w.T.contiguous()  # else the derivative by w multiplies rows of the transposed, 50 times as slow
        return y.view(-1, *size, len(w)).permute(0, 3, 1, 2)

    def can_fuse(self, conv: nn.Module) -> bool:
        """Return whether a convolution before this layer can be fused with it and is faster when fused."""
        return (
            type(conv) is nn.Conv2d
            and not any(m._forward_hooks or m._forward_pre_hooks for m in (conv, self))
            and conv.bias is None
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
            and conv.weight[0].numel() <= len(conv.weight)
            and (self.policy in ("transductive", "support") or (self.policy == "running" and self.training))
        )


def gram(rows: Tensor) -> Tensor:
    """Return the products [P, P] of all rows [P, M] with each other.

    Few columns at a time are summed in the dtype of the rows, and these sums in float64, where the device has it.
    """
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    whole = rows.shape[1] // COLUMNS * COLUMNS
    blocks, rest = rows[:, :whole].unflatten(1, (-1, COLUMNS)).movedim(1, 0), rows[:, whole:].to(exact)
    return (blocks @ blocks.mT).to(exact).sum(0) + rest @ rest.T


def is_initial(layer: nn.Module) -> bool:
    """Return whether a layer is batch normalisation by running statistics that have never been updated."""
    if not isinstance(layer, BatchNorm) or layer.policy not in ("running", "frozen"):
        return False
    return not layer.running_mean.any() and bool((layer.running_var == 1).all())


def is_channels_last(x: Tensor) -> bool:
    """Return whether ``x`` holds images [N, C, H, W] with the channels of a pixel side by side in memory."""
    return x.dim() == 4 and x.stride(1) == 1


def set_policy(model: nn.Module, policy: NormPolicy) -> None:
    """Set the policy of all normalisation layers of a model, including torch's own layers where they support it.

    Args:
        model: Network to change in place.
        policy: ``transductive``, ``support``, ``running`` or ``frozen``.

    Raises:
        UserError: The policy is ``support`` and the model has batch norm layers of torch.
    """
    dropped = 0
    for name, layer in model.named_modules():
        if isinstance(layer, BatchNorm):
            layer.policy = policy
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and policy == "frozen":
            layer.eval()
            layer.train = MethodType(_unchanged, layer)  # type: ignore[method-assign]
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and policy != "running":
            if policy == "support":
                raise UserError(
                    f"algorithm.norm=support does not work with torch's own batch norm (layer '{name}'); "
                    "use metarun.models.norm.BatchNorm, or norm=transductive, frozen or running"
                )
            dropped += layer.running_mean is not None and bool(layer.running_mean.any())
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    if dropped:
        log.info(
            "algorithm.norm=%s leaves out the statistics of %d batch norm layers of a pretrained model; "
            "algorithm.norm=frozen keeps them", policy, dropped,
        )  # fmt: skip


def _unchanged(layer: nn.Module, mode: bool = True) -> nn.Module:
    """Take the place of ``train`` in a layer that is to stay as it is."""
    return layer


@contextmanager
def statistics_from(model: nn.Module, rows: int | None) -> Iterator[None]:
    """Compute statistics from the first ``rows`` examples of each batch within the block; ``None`` means all."""
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm)]
    for layer in layers:
        layer.rows = rows
    try:
        yield
    finally:
        for layer in layers:
            layer.rows = None
