"""MAML with JAX: one ``jit`` of the whole meta-gradient with ``vmap`` over tasks.

Convolutions are matrix products of image patches, since XLA's own convolution with a batch of weights is twenty times
slower on a CPU. Pooling is a maximum of pairs, whose second derivative is correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metarun.bench.implementations import Implementation, PreparedStep
from metarun.bench.peers.networks import SpatialMean, torch_network
from metarun.bench.workloads import Problem
from metarun.errors import RunFailed


def make(problem: Problem) -> PreparedStep:
    """Prepare the compiled meta-gradient.

    Raises:
        RunFailed: JAX runs on another kind of device.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    backend = {"cuda": "gpu"}.get(problem.device.type, problem.device.type)
    if jax.default_backend() != backend:
        raise RunFailed(f"jax runs on {jax.default_backend()}, not on {problem.device.type}")
    jax.config.update("jax_enable_x64", problem.dtype is torch.float64)
    learner = problem.learner()
    net, batch = torch_network(problem, learner), problem.batch
    predict, classifies = _to_jax(net), learner.spec.kind == "classification"

    def array(values: Tensor) -> Any:
        """Convert a tensor to a JAX array, images to channels last."""
        return jnp.asarray((values.movedim(2, -1) if values.dim() == 5 else values).cpu().numpy())

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        predicted = predict(parameters, x)
        if classifies:
            return -jnp.take_along_axis(jax.nn.log_softmax(predicted), y[:, None], axis=1).mean()
        return jnp.square(predicted - y).mean()

    def outer(theta: Any, sx: Any, sy: Any, qx: Any, qy: Any) -> Any:
        phi = theta
        for _ in range(learner.inner_steps):
            gradients = jax.grad(loss)(phi, sx, sy)
            phi = [p - learner.inner_lr * g for p, g in zip(phi, gradients, strict=True)]
        return loss(phi, qx, qy)

    def mean(theta: Any, *data: Any) -> Any:
        return jax.vmap(outer, in_axes=(None, 0, 0, 0, 0))(theta, *data).mean()

    data = [array(values) for part in (batch.support, batch.query) for values in (part.x, part.y)]
    theta = [jnp.asarray(_to_matrix(p.detach()).cpu().numpy()) for p in net.parameters()]
    compiled, shapes = jax.jit(jax.grad(mean)), [p.shape for p in net.parameters()]
    found: list[Any] = []

    def step() -> None:
        found[:] = jax.block_until_ready(compiled(theta, *data))

    def gradient() -> list[Tensor]:
        given = (torch.from_numpy(np.array(g)) for g in found)
        return [_from_matrix(g, shape) for g, shape in zip(given, shapes, strict=True)]

    return PreparedStep(step, gradient)


def _to_matrix(p: Tensor) -> Tensor:
    """Convert the weight of a convolution from [O, I, K, K] to [K K I, O]. Other tensors are returned as they are."""
    return p.permute(2, 3, 1, 0).flatten(0, 2) if p.dim() == 4 else p


def _from_matrix(g: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != 4:
        return g
    outputs, inputs, *kernel = shape
    return g.view(*kernel, inputs, outputs).permute(3, 2, 0, 1)


def _to_jax(net: nn.Sequential) -> Callable[[Sequence[Any], Any], Any]:
    """Return ``net`` as a function of its parameters and inputs [N, H, W, C] or [N, features]."""
    import jax
    import jax.numpy as jnp

    def predict(parameters: Sequence[Any], x: Any) -> Any:
        remaining = iter(parameters)
        for layer in net:
            x = _apply(layer, remaining, x)
        return x

    def _apply(layer: nn.Module, parameters: Iterator[Any], x: Any) -> Any:
        match layer:
            case nn.Linear():
                return x @ next(parameters).T + next(parameters)
            case nn.Conv2d():
                return _patches(x, layer.kernel_size[0], layer.stride[0]) @ next(parameters)
            case nn.BatchNorm2d():
                centred = x - x.mean((0, 1, 2))
                scale = next(parameters) / jnp.sqrt(jnp.square(centred).mean((0, 1, 2)) + layer.eps)
                return centred * scale + next(parameters)
            case nn.ReLU():
                return jax.nn.relu(x)
            case nn.MaxPool2d():
                rows, columns = (2 * (n // 2) for n in x.shape[1:3])
                x = jnp.maximum(x[:, 0:rows:2], x[:, 1:rows:2])
                return jnp.maximum(x[:, :, 0:columns:2], x[:, :, 1:columns:2])
            case SpatialMean():
                return x.mean((1, 2))
            case nn.Flatten():
                return x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        raise NotImplementedError(type(layer).__name__)

    def _patches(x: Any, kernel: int, stride: int) -> Any:
        """Pad images [N, H, W, C] by one pixel and return their patches [N, H', W', K K C]."""
        rows, columns = ((n + 2 - kernel) // stride + 1 for n in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        reach = [slice(i, i + stride * (n - 1) + 1, stride) for n in (rows, columns) for i in range(kernel)]
        down, across = reach[:kernel], reach[kernel:]
        return jnp.concatenate([x[:, r, c] for r in down for c in across], axis=-1)

    return predict


IMPLEMENTATION = Implementation("jax", "jit and vmap, convolutions as products of patches", ("maml",), make, "jax")
