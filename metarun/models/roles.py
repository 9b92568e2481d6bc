"""What an algorithm needs of a model, by the model's role. A model needs no base class but ``torch.nn.Module``.

Sizes in shapes: N examples; T tasks; E environments of each task; B = T x E trials; S steps; A outputs of the policy
(``spec.output_size`` logits of discrete actions, or the mean and the log standard deviation of each action dimension).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Features(Protocol):
    """``features``: embeds examples; the algorithm adds the head."""

    def forward(self, x: Tensor) -> Tensor:
        """Embed examples.

        Args:
            x: Examples [N, *spec.input_shape]; images are bytes (uint8) in most families. Text models get the rows
                that their own ``encode`` made.

        Returns:
            Features [N, F].
        """


class TextEncoder(Protocol):
    """``features`` of texts: turns texts into rows of numbers once, before training."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Turn N texts into rows [N, ...]: token ids, or embeddings."""

    def example(self) -> Tensor:
        """Two rows as :meth:`encode` makes them, by which the algorithm finds the number of features."""


class Denoiser(Protocol):
    """``denoiser``: predicts an image from its noisy version and a set of images of its class."""

    def read(self, sets: Tensor, counts: Tensor) -> Any:
        """The context of ``sets`` [S, K, C, H, W], images in -1..1, of which those with ``counts`` [S, K] 1 count."""

    def forward(self, x: Tensor, t: Tensor, context: Any) -> Tensor:
        """Predictions [S, C, H, W] for noisy images ``x`` [S, C, H, W] at times ``t`` [S] in 0..1."""


class Policy(Protocol):
    """``policy``: acts by what it sees now. It adapts by its parameters, which may have a leading task dimension."""

    def forward(self, observation: Tensor) -> Tensor:
        """Action distributions [..., N, A] for observations [..., N, size].

        With parameters [T, ...] (``torch.func.functional_call``) and observations [T, N, size] it is T policies; layers
        that do so are ``metarun.models.policies.TaskLinear`` and ``TaskConv``.
        """


class RecurrentPolicy(Protocol):
    """``recurrent_policy``: acts by all that it saw in a trial. Its hidden state is what adapts."""

    encode: nn.Module
    """(observation [T, E, size], observation before, action, reward, done) -> inputs [T, E, I], one row a step.
    ``metarun.models.policies.PerceptVector`` does so."""
    head: nn.Module
    """Features [S, B, F] -> action distributions [S, B, A]."""
    value: nn.Module
    """Features [S, B, F] -> values [S, B, 1]."""

    def features(self, inputs: Tensor, *hidden: Any) -> tuple[Any, ...]:
        """Features [S, B, F] of inputs [S, B, I], then the new hidden state; no ``hidden``: a trial begins."""

    def forward(self, inputs: Tensor, *hidden: Any) -> tuple[Any, ...]:
        """Action distributions [S, B, A], values [S, B], then the new hidden state."""


class BeliefPolicy(Protocol):
    """``belief_policy``: acts by a Gaussian belief about the task, of L dimensions."""

    encode: nn.Module
    """As that of a :class:`RecurrentPolicy`."""
    actor: nn.Module
    head: nn.Module
    critic: nn.Module
    value_head: nn.Module
    """The parts that :meth:`act` uses: they learn by PPO, everything else by the bound on the likelihood."""

    def belief(self, inputs: Tensor, hidden: Any = None) -> tuple[Tensor, Tensor, Any]:
        """Mean and log-variance [S, B, L] after each of the inputs [S, B, I], and the new hidden state."""

    def reward(self, m: Tensor, observation: Tensor, action: Tensor, after: Tensor) -> Tensor:
        """Expected rewards [...] of steps in tasks ``m`` [..., L]: observation, action and next observation."""

    def act(self, observation: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Action distributions [..., A] and values [...]."""


class ContextPolicy(Protocol):
    """``context_policy``: acts by a task variable z of ``latent`` dimensions, inferred from a context of steps."""

    latent: int
    """Dimensions of z."""
    reads: int
    """Numbers that the encoder reads of a step: observation, action, reward, perhaps the next observation."""
    encoder: nn.Module
    actor: nn.Module
    critics: nn.Module
    targets: nn.Module
    """A copy of ``critics`` that follows them slowly."""

    def factors(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean times precision, and precision, of each step's Gaussian factor [..., N, latent].

        ``context`` is [..., N, reads].
        """

    def act(self, observation: Tensor, z: Tensor) -> Tensor:
        """Mean and log standard deviation of actions before they are squashed, [..., 2 * action dimensions]."""

    def values(self, observation: Tensor, action: Tensor, z: Tensor, targets: bool = False) -> Tensor:
        """Values [2, ...] by both critics, or by their targets."""


ROLES: dict[str, type] = {
    "features": Features,
    "denoiser": Denoiser,
    "policy": Policy,
    "recurrent_policy": RecurrentPolicy,
    "belief_policy": BeliefPolicy,
    "context_policy": ContextPolicy,
}
"""What a model must offer, by its ``role``."""


def members(role: type) -> list[str]:
    """The names that a role asks for."""
    named = [name for name in vars(role) if not name.startswith("_")]
    return [*vars(role).get("__annotations__", {}), *(name for name in named if callable(vars(role)[name]))]


def missing(model: nn.Module, role: type) -> list[str]:
    """The members of ``role`` that ``model`` lacks; ``forward`` too, where it is torch's own."""
    unwritten = type(model).forward is nn.Module.forward
    return [name for name in members(role) if not hasattr(model, name) or (name == "forward" and unwritten)]


def misfit(model: nn.Module, roles: Sequence[str], modality: str) -> str | None:
    """Why an algorithm that drives models of ``roles`` cannot drive ``model`` on inputs of ``modality``, or ``None``.

    A model that says its ``role`` is checked for that one, any other for whichever of ``roles`` it comes closest to.
    """
    own = getattr(model, "role", None)
    asked = [ROLES[name] for name in ([own] if own in roles else roles) if name in ROLES]
    if not asked:
        return None
    role = min(asked, key=lambda each: len(missing(model, each)))
    wanted = [role, TextEncoder] if role is Features and modality == "text" else [role]
    for each in wanted:
        if lacks := missing(model, each):
            name = f"{type(model).__module__}.{type(model).__qualname__}"
            return f"model {name} lacks {', '.join(lacks)}: {each.__module__}.{each.__name__} says what each must do"
    return None
