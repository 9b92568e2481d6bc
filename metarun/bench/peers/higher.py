"""MAML with higher, as in its example: a functional network and a differentiable optimizer for each task."""

from __future__ import annotations

import torch

from metarun.algorithms.supervised import TASK_LOSS
from metarun.bench.implementations import Implementation, PreparedStep, gradient_reader
from metarun.bench.peers.networks import torch_network
from metarun.bench.workloads import Problem


def make(problem: Problem) -> PreparedStep:
    """Prepare the loop of higher's MAML example."""
    from higher import innerloop_ctx

    learner = problem.learner()
    net = torch_network(problem, learner)
    kind, batch = learner.spec.kind, problem.batch
    optimizer = torch.optim.SGD(net.parameters(), lr=learner.inner_lr)

    def step() -> None:
        net.zero_grad()
        for (sx, sy), (qx, qy) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            with innerloop_ctx(net, optimizer, copy_initial_weights=False) as (adapted, descent):
                for _ in range(learner.inner_steps):
                    descent.step(TASK_LOSS[kind](adapted(sx), sy))
                (TASK_LOSS[kind](adapted(qx), qy) / len(batch.support.y)).backward()

    return PreparedStep(step, gradient_reader(net.parameters()))


IMPLEMENTATION = Implementation("higher", "its own loop", ("maml",), make, "higher")
