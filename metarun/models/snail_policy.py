"""SNAIL policy for RL2, which reads a trial by dilated causal convolutions and causal attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metarun.models.attention import KeyValueCache
from metarun.models.policies import HistoryPolicy
from metarun.models.snail_blocks import Attention, TemporalConvolutions, layers
from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate


class SnailPolicy(HistoryPolicy):
    """Policy of SNAIL, which replaces the GRU of RL2 (Mishra et al. 2018, arXiv:1707.03141, sections 3 and 5.2).

    A linear layer, ``convolutions`` blocks of temporal convolutions and one block of attention read the steps of a
    trial. A second head estimates the value.

    Args:
        spec: Shapes of the task.
        filters: Number of filters of each 3x3 convolution for image observations.
        transitions: If true, the input of a step also holds the previous observation.
        width: Outputs of the linear layer, filters of each temporal convolution, and size of keys and values.
        convolutions: Number of blocks of temporal convolutions.
        span: Number of steps that each of these blocks sees; best the length of a trial.
        init_std: Initial standard deviation of continuous actions.

    Raises:
        UserError: Observations are images and ``transitions`` is true.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        filters: Sequence[Positive],
        transitions: bool,
        width: Positive,
        convolutions: Positive,
        span: Positive,
        init_std: Rate,
    ) -> None:
        super().__init__(spec, filters, transitions)
        self.inputs = nn.Linear(self.read_size, width)
        channels = width
        self.blocks = nn.ModuleList()
        for _ in range(convolutions):
            block = TemporalConvolutions(channels, span, width)
            self.blocks.append(block)
            channels = block.channels
        self.blocks.append(Attention(channels, width, width))
        self.make_heads(spec, channels + width, init_std)

    def features(self, inputs: Tensor, past: Sequence[KeyValueCache] = ()) -> tuple[Tensor, Sequence[KeyValueCache]]:
        """Return the features that both heads read, [S, B, F], and the caches of the layers, with the S steps."""
        reading = list(layers(self.blocks))
        past = past or [KeyValueCache() for _ in reading]
        x = self.inputs(self.eyes(inputs).transpose(0, 1))
        for layer, cache in zip(reading, past, strict=True):
            x = layer(x, cache)
        return x.transpose(0, 1), past
