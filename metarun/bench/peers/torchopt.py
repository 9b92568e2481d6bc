"""MAML with TorchOpt, as in its example: ``MetaSGD`` steps the network, which is restored after each task."""

from __future__ import annotations

import torch

from metarun.algorithms.supervised import TASK_LOSS
from metarun.bench.implementations import Implementation, PreparedStep, gradient_reader
from metarun.bench.peers.networks import torch_network
from metarun.bench.workloads import Problem


def make(problem: Problem) -> PreparedStep:
    """Prepare the loop of TorchOpt's MAML example."""
    from torchopt import MetaSGD, extract_state_dict, recover_state_dict

    learner = problem.learner()
    net = torch_network(problem, learner)
    kind, batch = learner.spec.kind, problem.batch
    parameters = list(net.parameters())  # the optimizer replaces them by other tensors
    descent = MetaSGD(net, lr=learner.inner_lr)

    def step() -> None:
        for p in parameters:
            p.grad = None
        start = extract_state_dict(net, by="reference", detach_buffers=True)
        fresh = extract_state_dict(descent, by="reference")
        losses = []
        for (sx, sy), (qx, qy) in zip(batch.support.tasks(), batch.query.tasks(), strict=True):
            for _ in range(learner.inner_steps):
                descent.step(TASK_LOSS[kind](net(sx), sy))
            losses.append(TASK_LOSS[kind](net(qx), qy))
            recover_state_dict(net, start)
            recover_state_dict(descent, fresh)
        torch.stack(losses).mean().backward()

    return PreparedStep(step, gradient_reader(parameters))


IMPLEMENTATION = Implementation("torchopt", "its own loop", ("maml",), make, "torchopt")
