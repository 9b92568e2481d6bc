"""learn2learn: its MAML wrapper, and the loops of its examples.

Where the package is not installed (its last release does not build on every Python), an exact restatement of what
the wrapper does takes its place: the module is cloned for each task with parameters that stay connected to the
graph, adapted out of place by ``torch.autograd.grad``, and the query loss of each task is sent backward before the
next begins; the summed gradients are divided by the number of tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.supervised import task_loss
from metarun.bench.implementations import EVERY, Implementation, Ready, collected
from metarun.bench.peers.networks import twin
from metarun.bench.workloads import Problem

PUBLISHED = find_spec("learn2learn") is not None


class Restated:
    """What ``learn2learn.algorithms.MAML`` does with a module."""

    def __init__(self, module: nn.Module, lr: float, first_order: bool) -> None:
        self.module, self.lr, self.first_order = module, lr, first_order

    def clone(self) -> Restated:
        """A learner whose parameters are copies that gradients pass through."""
        copies = (p.clone() for p in self.module.parameters())
        return Restated(with_parameters(self.module, copies), self.lr, self.first_order)

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)

    def adapt(self, loss: Tensor) -> None:
        """One step of descent on ``loss``."""
        old = list(self.module.parameters())
        second = not self.first_order
        gradients = torch.autograd.grad(loss, old, retain_graph=second, create_graph=second)
        moved = (p - self.lr * g for p, g in zip(old, gradients, strict=True))
        self.module = with_parameters(self.module, moved)


def with_parameters(module: nn.Module, values: Iterable[Tensor]) -> nn.Module:
    """A shallow copy of ``module`` and its children, holding ``values`` as its parameters, in their order."""
    return _rebuilt(module, iter(values))


def _rebuilt(module: nn.Module, values: Iterator[Tensor]) -> nn.Module:
    other = object.__new__(type(module))
    vars(other).update(vars(module))
    vars(other)["_parameters"] = {n: None if p is None else next(values) for n, p in module._parameters.items()}
    vars(other)["_buffers"] = dict(module._buffers)
    vars(other)["_modules"] = {n: m and _rebuilt(m, values) for n, m in module._modules.items()}
    return other


def wrapped(module: nn.Module, lr: float, first_order: bool) -> Any:
    """learn2learn's own wrapper, or its restatement."""
    if not PUBLISHED:
        return Restated(module, lr, first_order)
    from learn2learn.algorithms.maml import MAML

    return MAML(module, lr=lr, first_order=first_order)


def maml(problem: Problem) -> Ready:
    """MAML, first-order MAML, and ANIL (the wrapper around the head alone)."""
    learner = problem.learner()
    net = twin(problem, learner)
    method = problem.workload.method
    # ANIL's examples embed support and query together; apart, each with its own statistics, is what the others do.
    features, adapting = (net[:-1], net[-1]) if method == "anil" else (nn.Identity(), net)
    wrapper = wrapped(adapting, learner.inner_lr, method == "fomaml")
    kind, steps, batch = learner.spec.kind, learner.inner_steps, problem.batch

    def step() -> None:
        net.zero_grad()
        for (sx, sy), (qx, qy) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            adapted = wrapper.clone()
            support, query = features(sx), features(qx)
            for _ in range(steps):
                adapted.adapt(task_loss(kind, adapted(support), sy))
            task_loss(kind, adapted(query), qy).backward()
        _divide(net, len(batch.support.y))

    return Ready(step, collected(net.parameters()))


def reptile(problem: Problem) -> Ready:
    """A deep copy and an inner optimizer for each task, as in its Reptile example; plain descent, as in the learner."""
    learner = problem.learner()
    net = twin(problem, learner)
    batch = problem.batch

    def step() -> None:
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        for (sx, sy), (qx, qy) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            adapted = copy.deepcopy(net)
            optimizer = torch.optim.SGD(adapted.parameters(), lr=learner.inner_lr)
            for _ in range(learner.inner_steps):
                optimizer.zero_grad()
                F.cross_entropy(adapted(sx), sy).backward()
                optimizer.step()
            F.cross_entropy(adapted(qx), qy)
            with torch.no_grad():
                for p, moved in zip(net.parameters(), adapted.parameters(), strict=True):
                    assert p.grad is not None
                    p.grad += p - moved
        _divide(net, len(batch.support.y))

    return Ready(step, collected(net.parameters()))


def protonet(problem: Problem) -> Ready:
    """Support and query embedded together, every pair's difference written out, as in its ProtoNet example."""
    learner = problem.learner()
    net = twin(problem, learner)
    batch, way = problem.batch, problem.workload.shape.way

    def step() -> None:
        net.zero_grad()
        for (sx, _), (qx, qy) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            support, query = net(torch.cat([sx, qx])).split([len(sx), len(qx)])
            centres = support.view(way, len(sx) // way, -1).mean(1)
            pairs = (len(query), way, -1)
            apart = query.unsqueeze(1).expand(pairs) - centres.unsqueeze(0).expand(pairs)
            F.cross_entropy(-(apart**2).sum(2), qy).backward()
        _divide(net, len(batch.support.y))

    return Ready(step, collected(net.parameters()))


def make(problem: Problem) -> Ready:
    loops = {"reptile": reptile, "protonet": protonet}
    return loops.get(problem.workload.method, maml)(problem)


def _divide(net: nn.Module, tasks: int) -> None:
    for p in net.parameters():
        if p.grad is not None:
            p.grad.mul_(1 / tasks)


IMPLEMENTATION = Implementation(
    "learn2learn", "its own loop" if PUBLISHED else "its loop, restated: the package is not installed", EVERY, make
)
