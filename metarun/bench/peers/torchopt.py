"""TorchOpt: the loop of its MAML example, the network stepped by ``MetaSGD`` and put back after each task."""

from __future__ import annotations

import torch

from metarun.algorithms.supervised import task_loss
from metarun.bench.implementations import Implementation, Ready, collected
from metarun.bench.peers.networks import twin
from metarun.bench.workloads import Problem


def make(problem: Problem) -> Ready:
    from torchopt import MetaSGD, extract_state_dict, recover_state_dict

    learner = problem.learner()
    net = twin(problem, learner)
    kind, batch = learner.spec.kind, problem.batch
    parameters = list(net.parameters())  # the optimizer puts other tensors in their place
    descent = MetaSGD(net, lr=learner.inner_lr)

    def step() -> None:
        for p in parameters:
            p.grad = None
        start = extract_state_dict(net, by="reference", detach_buffers=True)
        fresh = extract_state_dict(descent, by="reference")
        losses = []
        for (sx, sy), (qx, qy) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            for _ in range(learner.inner_steps):
                descent.step(task_loss(kind, net(sx), sy))
            losses.append(task_loss(kind, net(qx), qy))
            recover_state_dict(net, start)
            recover_state_dict(descent, fresh)
        torch.stack(losses).mean().backward()

    return Ready(step, collected(parameters))


IMPLEMENTATION = Implementation("torchopt", "its own loop", ("maml",), make, "torchopt")
