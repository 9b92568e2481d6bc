"""MAML, ANIL, Reptile and prototypical networks with learn2learn: its MAML wrapper and the loops of its examples.

The last release of learn2learn does not build on every Python. If it is not installed, :class:`MAMLReplica` replaces
its wrapper. It does exactly the same: it clones the module for each task with parameters that stay connected to the
graph and adapts them out of place with ``torch.autograd.grad``. The loop calls ``backward`` on the query loss of each
task before the next task and divides the summed gradients by the number of tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.supervised import TASK_LOSS
from metarun.bench.implementations import ALL_METHODS, Implementation, PreparedStep, gradient_reader
from metarun.bench.peers.networks import torch_network
from metarun.bench.workloads import Problem

INSTALLED = find_spec("learn2learn") is not None


class MAMLReplica:
    """Replica of ``learn2learn.algorithms.MAML``.

    Args:
        module: Network to adapt.
        lr: Inner learning rate.
        first_order: If true, ignore second derivatives.
    """

    def __init__(self, module: nn.Module, lr: float, first_order: bool) -> None:
        self.module, self.lr, self.first_order = module, lr, first_order

    def clone(self) -> MAMLReplica:
        """Return a learner with cloned parameters, through which gradients reach the original ones."""
        copies = (p.clone() for p in self.module.parameters())
        return MAMLReplica(with_parameters(self.module, copies), self.lr, self.first_order)

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)

    def adapt(self, loss: Tensor) -> None:
        """Take one step of gradient descent on ``loss``."""
        parameters = list(self.module.parameters())
        second = not self.first_order
        gradients = torch.autograd.grad(loss, parameters, retain_graph=second, create_graph=second)
        updated = (p - self.lr * g for p, g in zip(parameters, gradients, strict=True))
        self.module = with_parameters(self.module, updated)


def with_parameters(module: nn.Module, values: Iterable[Tensor]) -> nn.Module:
    """Return a shallow copy of ``module`` and its children with ``values`` as its parameters, in order."""
    return _copy_with(module, iter(values))


def _copy_with(module: nn.Module, values: Iterator[Tensor]) -> nn.Module:
    other = object.__new__(type(module))
    vars(other).update(vars(module))
    vars(other)["_parameters"] = {n: None if p is None else next(values) for n, p in module._parameters.items()}
    vars(other)["_buffers"] = dict(module._buffers)
    vars(other)["_modules"] = {n: m and _copy_with(m, values) for n, m in module._modules.items()}
    return other


def maml_wrapper(module: nn.Module, lr: float, first_order: bool) -> Any:
    """Wrap a module by learn2learn's MAML, or by its replica if learn2learn is not installed."""
    if not INSTALLED:
        return MAMLReplica(module, lr, first_order)
    from learn2learn.algorithms.maml import MAML

    return MAML(module, lr=lr, first_order=first_order)


def maml(problem: Problem) -> PreparedStep:
    """Prepare MAML, first-order MAML, or ANIL, which wraps the head alone."""
    learner = problem.learner()
    net = torch_network(problem, learner)
    method = problem.workload.method
    # learn2learn's ANIL examples embed support and query together. All implementations here embed them separately, each
    # with its own batch statistics.
    features, adapting = (net[:-1], net[-1]) if method == "anil" else (nn.Identity(), net)
    wrapper = maml_wrapper(adapting, learner.inner_lr, method == "fomaml")
    kind, steps, batch = learner.spec.kind, learner.inner_steps, problem.batch

    def step() -> None:
        net.zero_grad()
        for (sx, sy), (qx, qy) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            adapted = wrapper.clone()
            support, query = features(sx), features(qx)
            for _ in range(steps):
                adapted.adapt(TASK_LOSS[kind](adapted(support), sy))
            TASK_LOSS[kind](adapted(query), qy).backward()
        _divide(net, len(batch.support.y))

    return PreparedStep(step, gradient_reader(net.parameters()))


def reptile(problem: Problem) -> PreparedStep:
    """Prepare Reptile with a deep copy and an inner optimizer for each task, as in its example, but with plain SGD."""
    learner = problem.learner()
    net = torch_network(problem, learner)
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
                for p, final in zip(net.parameters(), adapted.parameters(), strict=True):
                    assert p.grad is not None
                    p.grad += p - final
        _divide(net, len(batch.support.y))

    return PreparedStep(step, gradient_reader(net.parameters()))


def protonet(problem: Problem) -> PreparedStep:
    """Prepare a prototypical network that embeds support and query together, as in learn2learn's example."""
    learner = problem.learner()
    net = torch_network(problem, learner)
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

    return PreparedStep(step, gradient_reader(net.parameters()))


def make(problem: Problem) -> PreparedStep:
    """Prepare the loop for the method of the workload."""
    loops = {"reptile": reptile, "protonet": protonet}
    return loops.get(problem.workload.method, maml)(problem)


def _divide(net: nn.Module, tasks: int) -> None:
    for p in net.parameters():
        if p.grad is not None:
            p.grad.mul_(1 / tasks)


IMPLEMENTATION = Implementation(
    "learn2learn",
    "its own loop" if INSTALLED else "a replica of its loop: the package is not installed",
    ALL_METHODS,
    make,
)
