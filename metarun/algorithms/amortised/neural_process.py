"""Neural processes: a network reads the context set and predicts a distribution at every target point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log, pi, sqrt
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from metarun.algorithms.amortised.sequence import embedded
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, dry_run, prediction_metrics
from metarun.errors import require
from metarun.models.attention import attend
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, NonNegative, Positive, Rate

Gaussian = tuple[Tensor, Tensor]
"""Mean and standard deviation."""


class PredictiveProcess(SupervisedAlgorithm):
    """The base class of learners whose prediction at a point is a Gaussian that depends on the context set.

    A subclass implements :meth:`predictive` and ``outer_loss``.
    """

    kinds: ClassVar[tuple[str, ...]] = ("regression",)

    def predictive(self, support: Labelled) -> Callable[[Tensor], Gaussian]:
        """Condition on the context sets of T tasks.

        Args:
            support: Context points: x [T, N, ...], y [T, N, D].

        Returns:
            A function of inputs x [T, M, ...] to mean and standard deviation, both [S, T, M, D], of each of S equally
            likely samples of the latent variable; S = 1 without one.
        """
        raise NotImplementedError

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        yield Predictive(self.predictive(support), support)

    def query_metrics(self, learner: Adapted, query: Labelled) -> Metrics:
        """Return the mean squared error of the mean and negative log likelihoods, [T] each.

        ``nll`` is -log p(y) / M of a task's M query points. ``nll_sum`` is -log p(y). ``nll_with_context`` is that of
        context and query points per point. With a latent variable, p(y) is the mean over its samples of the joint
        likelihood of the points.
        """
        assert isinstance(learner, Predictive)
        mean, std = learner.gaussians(query.x)
        at_query = log_density(mean, std, query.y).sum(-1)
        at_context = log_density(*learner.gaussians(learner.context.x), learner.context.y).sum(-1)
        points, known = query.y.shape[1], learner.context.y.shape[1]
        return {
            **prediction_metrics(self.spec, mean.mean(0), query.y),
            "nll": (log(len(mean)) - at_query.logsumexp(0)) / points,
            "nll_sum": log(len(mean)) - at_query.logsumexp(0),
            "nll_with_context": (log(len(mean)) - (at_query + at_context).logsumexp(0)) / (points + known),
        }


class NeuralProcess(PredictiveProcess):
    """Conditional, latent and attentive neural processes; the arguments choose among them.

    **Conditional** (Garnelo et al. 2018a, arXiv:1807.01613, equations 2-4): an encoder MLP maps each context pair to
    r_i. Their mean r is the deterministic path. A decoder MLP maps (r, x) to the mean and standard deviation of y. The
    loss is the mean negative log-likelihood of context and target points.
    **Latent** (``latent`` > 0 dimensions; Garnelo et al. 2018b, arXiv:1807.01622, equations 7-8): a second encoder,
    averaged over points, gives q(z | points), and the decoder also reads z. The loss is the negative ELBO with z drawn
    from q(z | context and targets) and the prior q(z | context). The KL term is divided by the number of points.
    **Attentive** (Kim et al. 2019, arXiv:1901.05761, section 3): cross-attention of kind ``attention`` between target
    and context inputs weighs the r_i (``uniform``: their mean). ``self_attention`` layers let context points attend to
    each other first, in both paths. Queries and keys are a two-layer MLP of x, except for ``uniform``. ``residual``
    is ``multihead`` with what follows it in a transformer, as in the code of Gordon et al. 2020 (arXiv:1910.13556).

    ``loss=targets`` is the sum over the target points alone, with the KL term undivided. ``init=xavier`` draws all
    weights but those of queries and keys by Xavier's rule (Glorot & Bengio 2010, normal), with zero biases; they start
    1.7 times as large as torch's own. The network of queries and keys keeps torch's biases, which tell its units apart.
    Both are as in the code of Gordon et al.; ``None`` is ``mean`` and ``torch``.

    The standard deviation of y is ``min_std`` + (1 - ``min_std``) softplus, that of z is .1 + .9 sigmoid, as in the
    authors' notebooks. ``model`` embeds x [T, N, ...]. At test, ``samples`` values of z are drawn from q(z | context).
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        width: Positive,
        encoder_layers: Positive,
        decoder_layers: Positive,
        deterministic: bool,
        latent: Count,
        attention: Literal["uniform", "dot", "multihead", "residual"],
        heads: Positive,
        self_attention: Count,
        min_std: NonNegative,
        samples: Positive,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
        loss: Literal["mean", "targets"] | None = None,
        init: Literal["torch", "xavier"] | None = None,
    ) -> None:
        super().__init__()
        require(deterministic or latent > 0, "algorithm.deterministic=false needs algorithm.latent of 1 or more")
        require(
            width % heads == 0 or (attention in ("uniform", "dot") and not self_attention),
            f"algorithm.width={width} cannot be shared out among algorithm.heads={heads}",
        )
        self.model, self.spec, self.attention, self.latent = model, spec, attention, latent
        self.heads, self.min_std, self.samples = heads, min_std, samples
        self.train_shot, self.train_query, self.loss = train_shot, train_query, loss
        inputs, outputs = dry_run(model, spec).shape[-1], spec.output_size
        encoder = [width] * encoder_layers
        attend_context = [SelfAttention(width, heads) for _ in range(self_attention)]
        if deterministic:
            self.encoder = nn.Sequential(mlp(inputs + outputs, *encoder), *attend_context)
            if attention != "uniform":
                self.keys = mlp(inputs, width, width)
            if attention in ("multihead", "residual"):
                self.projections = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
            self.after_attention = AfterAttention(width) if attention == "residual" else None
        if latent:
            attend_context = [SelfAttention(width, heads) for _ in range(self_attention)]
            self.latent_encoder = nn.Sequential(mlp(inputs + outputs, *encoder), *attend_context)
            self.latent_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 * latent))
        self.deterministic = deterministic
        read = inputs + latent + (width if deterministic else 0)
        self.decoder = mlp(read, *[width] * decoder_layers, 2 * outputs)
        if init == "xavier":
            initialise(self, but=("model", "keys"))
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        context = Labelled(embedded(self.model, batch.support.x), batch.support.y)
        points = Labelled(
            torch.cat([context.x, embedded(self.model, batch.query.x)], 1),
            torch.cat([batch.support.y, batch.query.y], 1),
        )
        z, kl = None, None
        if self.latent:
            prior, posterior = self.latent_of(context), self.latent_of(points)
            z = (posterior[0] + posterior[1] * torch.randn_like(posterior[0]))[None]
            kl = divergence(posterior, prior).mean()
        if self.loss == "targets":
            points = points.map(lambda values: values[:, context.x.shape[1] :])
        mean, std = self.decode(context, points.x, z)
        nll = -log_density(mean, std, points.y).mean()
        loss = nll if kl is None else nll + kl / points.y.shape[1]
        loss = loss * points.y.shape[1] if self.loss == "targets" else loss
        metrics = {"loss": loss, "nll": nll, "mse": (mean - points.y).square().mean()}
        return loss, {name: value.detach() for name, value in {**metrics, **({} if kl is None else {"kl": kl})}.items()}

    def predictive(self, support: Labelled) -> Callable[[Tensor], Gaussian]:
        context, z = Labelled(embedded(self.model, support.x), support.y), None
        if self.latent:
            mean, std = self.latent_of(context)
            z = mean + std * torch.randn(self.samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return lambda x: self.decode(context, embedded(self.model, x), z)

    def latent_of(self, points: Labelled) -> Gaussian:
        """Return the mean and standard deviation of q(z | points), both [T, latent]."""
        read = self.latent_encoder(torch.cat([points.x, points.y], -1)).mean(1)
        mean, raw = self.latent_head(read).chunk(2, -1)
        return mean, 0.1 + 0.9 * torch.sigmoid(raw)

    def decode(self, context: Labelled, x: Tensor, z: Tensor | None) -> Gaussian:
        """Return mean and standard deviation, both [S, T, N, D], at embedded ``x`` [T, N, F] for z [S, T, latent].

        Without z, S is 1.
        """
        parts = [x]
        if self.deterministic:
            parts.append(self.attend(context, x))
        known = torch.cat(parts, -1)[None]
        if z is not None:
            wide = z[:, :, None].expand(-1, -1, x.shape[1], -1)
            known = torch.cat([known.expand(len(z), -1, -1, -1), wide], -1)
        mean, raw = self.decoder(known).chunk(2, -1)
        return mean, self.min_std + (1 - self.min_std) * F.softplus(raw)

    def attend(self, context: Labelled, x: Tensor) -> Tensor:
        """The context's representation for each ``x`` [T, N, F]: [T, N, width]."""
        values = self.encoder(torch.cat([context.x, context.y], -1))
        if self.attention == "uniform":
            return values.mean(1, keepdim=True).expand(-1, x.shape[1], -1)
        queries, keys = self.keys(x), self.keys(context.x)
        if self.attention == "dot":
            return torch.softmax(queries @ keys.transpose(1, 2) / sqrt(keys.shape[-1]), -1) @ values
        for_query, for_key, for_value, out = self.projections
        found = out(attend(for_query(queries), for_key(keys), for_value(values), self.heads))
        return found if self.after_attention is None else self.after_attention(queries, found)

    def protocol(self) -> dict[str, Any]:
        return {"latent_samples": self.samples} if self.latent else {}


class Predictive:
    """An adapted neural process. It maps x [T, N, ...] to the predictive mean of y, [T, N, D]."""

    def __init__(self, gaussians: Callable[[Tensor], Gaussian], context: Labelled) -> None:
        self.context = context
        self.gaussians = gaussians
        """Function of x to mean and standard deviation, both [S, T, N, D], for S equally likely samples of z."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.gaussians(x)[0].mean(0)


class SelfAttention(nn.Module):
    """Residual self-attention over points [T, N, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        queries, keys, read = self.read(values).chunk(3, -1)
        return values + self.out(attend(queries, keys, read, self.heads))


class AfterAttention(nn.Module):
    """The rest of a post-norm transformer's layer after its attention: residual connections around it and a linear map.

    Gordon et al. 2020 (arXiv:1910.13556) have it in the attentive process that they compare with, in their code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.linear = nn.Linear(width, width)

    def forward(self, queries: Tensor, found: Tensor) -> Tensor:
        """Return [T, N, width] from queries and what they found by attention, both [T, N, width]."""
        first, second = self.norms
        seen = first(found + queries)
        return second(seen + self.linear(seen))


def log_density(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    """Return log N(y; mean, std^2), summed over the dimensions of y: [..., D] -> [...]."""
    return (-0.5 * ((y - mean) / std).square() - std.log() - 0.5 * log(2 * pi)).sum(-1)


def divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """Return KL(q || p) of diagonal Gaussians, summed over dimensions: [..., D] -> [...]."""
    ratio = (q[1] / p[1]).square()
    return 0.5 * (ratio + ((q[0] - p[0]) / p[1]).square() - 1 - ratio.log()).sum(-1)


def initialise(process: nn.Module, but: tuple[str, ...]) -> None:
    """Give linear and convolutional layers normal weights of variance 2 / (inputs + outputs) and zero biases, in place.

    Args:
        process: The layers.
        but: Names of its parts that are left as they are.
    """
    for name, layer in process.named_modules():
        if isinstance(layer, (nn.Linear, _ConvNd)) and not name.startswith(but):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def mlp(inputs: int, *widths: int) -> nn.Sequential:
    """Build an MLP with ReLUs between its linear layers."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [*([nn.ReLU()] if layers else []), nn.Linear(inputs, width)]
        inputs = width
    return nn.Sequential(*layers)
