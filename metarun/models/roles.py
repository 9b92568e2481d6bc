"""Interfaces between algorithms and models, one per role. A model needs no base class but ``torch.nn.Module``.

Sizes in shapes: N examples; T tasks; E environments per task; B = T x E trials; S steps; A outputs of the policy
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
        """Convert texts to numbers.

        Args:
            texts: N texts.

        Returns:
            Rows [N, ...] of token ids or embeddings.
        """

    def example(self) -> Tensor:
        """Return two rows in the format of :meth:`encode`, from which the algorithm infers the number of features."""


class InContext(Protocol):
    """``in_context``: predicts examples from labelled ones, both of which it reads at once."""

    def forward(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predict the queries of T tasks.

        Args:
            x: Support examples [T, N, ...].
            y: Their labels [T, N, K]: one-hot classes, or standardised targets.
            queries: Query examples [T, M, ...].

        Returns:
            Logits of K classes [T, M, K], or mean and unbounded deviation of K targets [T, M, 2 K].
        """

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Call :meth:`forward`, as every torch module does."""


class Denoiser(Protocol):
    """``denoiser``: predicts an image from its noisy version and a set of images of its class."""

    def read(self, sets: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        """Encode sets of clean images.

        Args:
            sets: Images in -1..1, [S, K, C, H, W].
            counts: 1 for the images that belong to a set, 0 for padding, [S, K].

        Returns:
            The context for :meth:`forward`, tensors [S, ...].
        """

    def forward(self, x: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Predict clean images.

        Args:
            x: Noisy images [S, C, H, W].
            t: Times [S] in 0..1.
            context: What :meth:`read` returned.

        Returns:
            Logits of the pixels of the clean images, [S, C, H, W].
        """

    def __call__(self, x: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Call :meth:`forward`, as every torch module does."""


class Policy(Protocol):
    """``policy``: acts on the current observation. It adapts by its parameters, which may be batched over tasks."""

    def forward(self, observation: Tensor) -> Tensor:
        """Return action distributions [..., N, A].

        With ``torch.func.functional_call``, parameters [T, ...] and observations [T, N, size] it must run T policies at
        once. The layers ``metarun.models.policies.TaskLinear`` and ``TaskConv`` support this.

        Args:
            observation: Observations [..., N, size].
        """


class RecurrentPolicy(Protocol):
    """``recurrent_policy``: acts on the whole history of a trial. Adaptation happens in its hidden state."""

    encode: nn.Module
    """Maps (observation [T, E, size], previous observation, action, reward, done) to inputs [T, E, I].

    ``metarun.models.policies.AgentInput`` is such a module.
    """
    head: nn.Module
    """Maps features [S, B, F] to action distributions [S, B, A]."""
    value: nn.Module
    """Maps features [S, B, F] to values [S, B, 1]."""

    def features(self, inputs: Tensor, *hidden: Any) -> tuple[Any, ...]:
        """Run the network without its heads.

        Args:
            inputs: Inputs of S steps, [S, B, I].
            hidden: The hidden state; none at the start of a trial.

        Returns:
            Features [S, B, F] and the new hidden state.
        """

    def forward(self, inputs: Tensor, *hidden: Any) -> tuple[Any, ...]:
        """Run the network.

        Args:
            inputs: Inputs of S steps, [S, B, I].
            hidden: The hidden state; none at the start of a trial.

        Returns:
            Action distributions [S, B, A], values [S, B] and the new hidden state.
        """

    def __call__(self, inputs: Tensor, *hidden: Any) -> tuple[Any, ...]:
        """Call :meth:`forward`, as every torch module does."""


class BeliefPolicy(Protocol):
    """``belief_policy``: acts on a Gaussian belief about the task with L dimensions."""

    encode: nn.Module
    """Same as :attr:`RecurrentPolicy.encode`."""
    actor: nn.Module
    head: nn.Module
    critic: nn.Module
    value_head: nn.Module
    """Modules that :meth:`act` uses. PPO trains these, and the evidence lower bound trains all other modules."""

    def belief(self, inputs: Tensor, hidden: Any = None) -> tuple[Tensor, Tensor, Any]:
        """Update the belief.

        Args:
            inputs: Inputs of S steps, [S, B, I].
            hidden: The hidden state; ``None`` at the start of a trial.

        Returns:
            Mean and log-variance after each step, [S, B, L] each, and the new hidden state.
        """

    def reward(self, m: Tensor, observation: Tensor, action: Tensor, after: Tensor) -> Tensor:
        """Predict the rewards of steps.

        Args:
            m: Task variables [..., L].
            observation: Observations [..., size].
            action: Actions, [...] if discrete, else [..., size].
            after: Next observations [..., size].

        Returns:
            Rewards [...].
        """

    def act(self, observation: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return action distributions [..., A] and values [...].

        Args:
            observation: Observations [..., size].
            mean: Mean of the belief, [..., L].
            log_variance: Log-variance of the belief, [..., L].
        """


class ContextPolicy(Protocol):
    """``context_policy``: acts on a task variable z that is inferred from a context of steps."""

    latent: int
    """Dimensions of z."""
    reads: int
    """Size of the encoder's input for a step: observation, action, reward and, optionally, next observation."""
    encoder: nn.Module
    actor: nn.Module
    critics: nn.Module
    targets: nn.Module
    """Target network: a copy of ``critics`` that follows them slowly."""

    def factors(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean times precision, and precision, of each step's Gaussian factor, [..., N, latent] each.

        Args:
            context: Steps, [..., N, reads].
        """

    def act(self, observation: Tensor, z: Tensor) -> Tensor:
        """Return mean and log standard deviation of actions before tanh, [..., 2 * action dimensions].

        Args:
            observation: Observations [..., size].
            z: Task variables [..., latent].
        """

    def values(self, observation: Tensor, action: Tensor, z: Tensor, targets: bool = False) -> Tensor:
        """Return the values [2, ...] of both critics.

        Args:
            observation: Observations [..., size].
            action: Actions after tanh, [..., size].
            z: Task variables [..., latent].
            targets: If true, the values of the target networks.
        """


ROLES: dict[str, type] = {
    "features": Features,
    "in_context": InContext,
    "denoiser": Denoiser,
    "policy": Policy,
    "recurrent_policy": RecurrentPolicy,
    "belief_policy": BeliefPolicy,
    "context_policy": ContextPolicy,
}
"""Interface of each role."""


def members(role: type) -> list[str]:
    """Return the names of the members of a role."""
    named = [name for name in vars(role) if not name.startswith("_")]
    return [*vars(role).get("__annotations__", {}), *(name for name in named if callable(vars(role)[name]))]


def missing(model: nn.Module, role: type) -> list[str]:
    """Return the members of ``role`` that ``model`` lacks. A ``forward`` inherited from torch counts as missing."""
    inherited = type(model).forward is nn.Module.forward
    return [name for name in members(role) if not hasattr(model, name) or (name == "forward" and inherited)]


def misfit(model: nn.Module, roles: Sequence[str], modality: str) -> str | None:
    """Return the reason why a model does not fit an algorithm, or ``None`` if it fits.

    A model with an attribute ``role`` is checked against that role, any other model against the role of which it lacks
    the fewest members.

    Args:
        model: Model to check.
        roles: Roles that the algorithm supports.
        modality: Kind of inputs, such as ``text``.
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
