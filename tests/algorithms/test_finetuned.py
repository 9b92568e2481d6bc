"""P>M>F in float64: its steps against Adam written out by hand, its augmentation, and what it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metarun.algorithms.metric.finetuned import FineTunedEmbedding
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.episode import Labelled, Spec
from tests.composed import composed

pytestmark = pytest.mark.usefixtures("float64")
VECTORS = Spec("classification", "vector", (4,), 3)


def learner(model: nn.Module, spec: Spec = VECTORS, name: str = "pmf", **keys: Any) -> FineTunedEmbedding:
    section = composed(f"algorithm={name}", *(f"algorithm.{k}={v}" for k, v in keys.items()))["algorithm"]
    return construct(section, model=model, spec=spec).double().eval()


def support(tasks: int = 2) -> Labelled:
    return Labelled(torch.randn(tasks, 6, 4), torch.arange(3).repeat(2).expand(tasks, -1), 3)


def by_hand(net: nn.Linear, x: torch.Tensor, y: torch.Tensor, query: torch.Tensor, lr: float, steps: int) -> Any:
    """Cosine of scale 10 to the class means of tanh(W x + b), after steps of Adam on the support set."""
    w, b = net.weight.detach().clone(), net.bias.detach().clone()
    m, v = [torch.zeros_like(w), torch.zeros_like(b)], [torch.zeros_like(w), torch.zeros_like(b)]

    def logits(q: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        s, q = torch.tanh(x @ w.T + b), torch.tanh(q @ w.T + b)
        means = torch.stack([s[y == c].mean(0) for c in range(3)])
        return 10 * (q / q.norm(dim=1, keepdim=True)) @ (means / means.norm(dim=1, keepdim=True)).T

    for step in range(1, steps + 1):
        w.requires_grad_()
        b.requires_grad_()
        loss = -logits(x, w, b).log_softmax(1)[torch.arange(len(y)), y].mean()
        gradients = torch.autograd.grad(loss, (w, b))
        moved = []
        for i, (p, g) in enumerate(zip((w, b), gradients, strict=True)):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            moved.append(p.detach() - lr * (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.999**step)).sqrt() + 1e-8))
        w, b = moved
    return logits(query, w, b)


def test_it_takes_the_steps_of_adam_with_prototypes_computed_anew() -> None:
    net, given, query = nn.Linear(4, 5), support(), torch.randn(2, 7, 4)
    tuned = learner(nn.Sequential(net, nn.Tanh()), inner_lr=0.05, test_steps=4)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    with torch.no_grad():
        found = tuned.adapt(given)(query)
    for task in range(2):
        expected = by_hand(net, given.x[task], given.y[task], query[task], 0.05, 4)
        assert torch.allclose(found[task], expected, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def test_without_steps_it_is_a_prototypical_network() -> None:
    model, given, query = nn.Linear(4, 5), support(), torch.randn(2, 7, 4)
    plain = learner(model, name="protonet", **{"head.distance": "cosine", "head.scale": 10})
    with torch.no_grad():
        expected = plain.adapt(given)(query)
        for found in (learner(model, test_steps=0).adapt(given), next(learner(model).adaptations(given, 0))):
            assert torch.allclose(found(query), expected, rtol=1e-12, atol=1e-14)


def test_it_learns_what_the_embedding_ignores() -> None:
    """Classes differ in the last input, which the embedding nearly ignores, and the others are noise."""
    y = torch.arange(3).repeat(20)[None]
    x, query = torch.randn(1, 60, 4), torch.randn(1, 60, 4)
    for each in (x, query):
        each[..., 3] = y + 0.1 * each[..., 3] - 1
    model = nn.Linear(4, 5)
    accuracy = []
    with torch.no_grad():
        model.weight[:, 3] *= 0.05
        for steps in (0, 40):
            adapted = learner(model, inner_lr=0.05, test_steps=steps).adapt(Labelled(x, y, 3))
            accuracy.append(float((adapted(query).argmax(-1) == y).double().mean()))
    assert accuracy[0] < 0.7
    assert accuracy[1] > 0.9


def test_support_images_are_augmented_each_by_itself() -> None:
    spec = Spec("classification", "image", (3, 16, 16), 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    image = torch.zeros(1, 1000, 3, 16, 16)
    image[..., 8, 5] = 0.5
    moved = learner(model, spec, jitter=0).augmented(image)
    assert (moved.flatten(2).sum(-1) == 1.5).all()
    places = {tuple(place[1:].tolist()) for place in moved[0, :, 0].nonzero()}
    assert places == {(down, across) for down in range(6, 11) for across in (*range(3, 8), *range(8, 13))}
    still = learner(model, spec, shift=0, flip="false", jitter=0.5).augmented(image)
    bright = still[0, :, 0, 8, 5]
    assert len(bright.unique()) > 900
    assert 0 <= float(bright.min()) < 0.3 < 0.6 < float(bright.max()) <= 1
    assert torch.equal(learner(model, spec, shift=0, flip="false", jitter=0).augmented(image), image)
    assert torch.equal(learner(nn.Linear(4, 5)).augmented(image[0, :, 0, 0]), image[0, :, 0, 0])


def test_a_model_without_trained_parameters_is_refused() -> None:
    frozen = nn.Linear(4, 5).requires_grad_(False)
    with pytest.raises(UserError, match=r"no parameters there to adapt; .*model.tune=norm, lora or all"):
        learner(frozen)
