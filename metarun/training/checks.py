"""Checks of what components promise each other, for a task, a model and an algorithm that are put together."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from metarun.algorithms.base import Algorithm
from metarun.algorithms.rl.collect import Transition, collect
from metarun.errors import UserError, users_place
from metarun.evaluation.evaluator import evaluate
from metarun.tasks.episode import EpisodeShape, Labelled, TaskBatch
from metarun.tasks.rl.base import Environment
from metarun.tasks.rng import seed_generators
from metarun.training.draws import MetaBatches, StepSeeds
from metarun.training.experiment import Experiment
from metarun.types import Split

CLOSE = 1e-4
"""Relative difference up to which values count as equal where another order of operations is allowed."""


class Broken(Exception):
    """A component does not do what its contract says."""


def examine(make: Callable[[], Experiment]) -> Iterator[tuple[str, str, str | None]]:
    """Check an experiment and yield (component, what should hold, why it does not or ``None``) for each check.

    Args:
        make: Function that builds the experiment anew, as it was before.
    """
    run = make()
    control = run.task.kind == "control"
    checks: list[tuple[str, str, Callable[[], None]]] = [
        ("task", "batch returns the same tasks whenever it is called", lambda: same_tasks(run)),
        ("task", "a task is the same whatever other tasks are drawn with it", lambda: independent_tasks(run)),
        ("task", "the splits have other tasks", lambda: other_splits(run)),
        ("task", "the protocol names the data", lambda: named_data(run)),
    ]
    if control:
        checks.append(("task", "the environment takes steps of any policy", lambda: steps_of_a_random_policy(run)))
    else:
        checks.append(("task", "episodes have the sizes, labels and inputs that they declare", lambda: sizes(run)))
    if getattr(type(run.algorithm), "roles", ()) == ("recurrent_policy",):
        checks.append(("model", "steps one by one are those of a whole trial", lambda: memory(run)))
    checks += [
        ("algorithm", "outer steps change what it learns and stay finite", lambda: learns(make)),
        ("algorithm", "evaluating twice gives the same, and changes nothing", lambda: evaluates(run)),
        ("algorithm", "a run that was stopped goes on to the bit", lambda: goes_on(make)),
    ]
    for component, what, check in checks:
        yield component, what, failure(check)


def failure(check: Callable[[], None]) -> str | None:
    """Return why a check fails; ``None`` if it holds. What a user's own code raised is told with its place."""
    try:
        check()
    except Broken as error:
        return str(error)
    except Exception as error:
        place = users_place(error)
        return f"{place + ' raised ' if place else ''}{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def hold(condition: bool, why: str) -> None:
    """Raise :class:`Broken` with the reason unless the condition holds."""
    if not condition:
        raise Broken(why)


# The task


def drawn(run: Experiment, indices: Sequence[int], split: Split = "train", shape: EpisodeShape | None = None) -> Any:
    return run.task.batch(split, indices, shape)


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of meta-batches, environments and whatever else tasks return, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for each in value for t in tensors(each)]
    if hasattr(value, "__dict__"):
        held = vars(value).values()
        return [t for each in held if isinstance(each, (Tensor, Labelled, list, tuple)) for t in tensors(each)]
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def same(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    """Return whether tensors are equal to the bit."""
    a, b = list(ours), list(theirs)
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def same_tasks(run: Experiment) -> None:
    found = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        batch = drawn(run, [0, 1])
        start = [batch.reset(2, batch.generator())] if isinstance(batch, Environment) else []
        found.append([*tensors(batch), *start])
    hold(
        same(*found),
        "batch('train', [0, 1]) returned other values at a second call: all its random numbers must come from "
        "(seed, split, indices), as those of metarun.uniforms do",
    )


def independent_tasks(run: Experiment) -> None:
    if run.task.tested_together > 1:
        return  # tasks share what is drawn for all of them
    try:
        together, alone = drawn(run, [4, 7]), drawn(run, [7])
    except UserError:
        return  # the family refuses tasks of different sizes in a batch
    if not (isinstance(together, TaskBatch) and isinstance(alone, TaskBatch)):
        return
    pairs = [(t[1:], one) for t, one in zip(tensors(together), tensors(alone), strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        return  # sizes are drawn for a whole meta-batch
    hold(
        all(torch.allclose(a.double(), b.double(), rtol=CLOSE, atol=CLOSE) for a, b in pairs),
        "task 7 of batch('train', [4, 7]) is not that of batch('train', [7])",
    )


def other_splits(run: Experiment) -> None:
    if not run.task.held_out_val:
        return  # there are only a few tasks, as two directions
    found = [tensors(drawn(run, [0, 1], split)) for split in ("train", "test")]
    hold(not same(*found), "the first tasks of train and test are the same: the split must enter their random numbers")


def named_data(run: Experiment) -> None:
    hold("data" in run.task.protocol(), "protocol() has no entry 'data', which says of what data a result is")


def sizes(run: Experiment) -> None:
    task, shape = run.task, run.task.shape
    asked = [shape]
    fixed = shape is not None and not shape.varied and not sizes_are_drawn(run)
    if fixed and shape is not None and task.kind == "classification":
        asked.append(shape.changed(shot=shape.shot - 1 or 2, query=max(shape.query - 1, 1)))
    for each in asked:
        batch = drawn(run, [0, 1], shape=each)
        for group in batch if isinstance(batch, list) else [batch]:
            if isinstance(group, TaskBatch):
                for name, part in (("support", group.support), ("query", group.query)):
                    check_part(name, part, run, each if fixed else None)
    hold(hasattr(task, "metric"), "the class has no attribute metric")


def sizes_are_drawn(run: Experiment) -> bool:
    """Return whether a family draws the sizes of its episodes, which then need not be those that are asked for."""
    apart = max(2, run.task.tested_together)
    found = [[t.shape for t in tensors(drawn(run, [i, i + 1]))] for i in range(0, 8 * apart, apart)]
    return any(each != found[0] for each in found)


def check_part(name: str, part: Labelled, run: Experiment, shape: EpisodeShape | None) -> None:
    """Check a support or a query set; its size if a shape is given."""
    spec = run.task.spec
    count = None if shape is None else (shape.shot if name == "support" else shape.query)
    if spec.kind == "classification":
        hold(part.way > 0, f"Labelled(x, y, way) of the {name} set has no way, the number of classes")
        hold(not part.y.is_floating_point(), f"the labels of the {name} set are {part.y.dtype}, not integers")
        low, high = int(part.y.min()), int(part.y.max())
        hold(low >= 0 and high < part.way, f"the labels of the {name} set are {low}..{high}, not 0..{part.way - 1}")
        if count and shape is not None and not (shape.named or shape.unknown):
            hold(
                part.y.shape[1] == shape.way * count,
                f"the {name} set has {part.y.shape[1]} examples; {shape} asks for {shape.way} x {count}: shot and "
                "query are per class, and the argument shape replaces the task's own",
            )
    elif spec.kind == "regression" and count:
        hold(part.y.shape[-1] == spec.output_size, f"targets of the {name} set are {tuple(part.y.shape)}, "
             f"not [T, N, {spec.output_size}], spec.output_size")  # fmt: skip
        hold(part.y.shape[1] == count, f"the {name} set has {part.y.shape[1]} examples; {shape} asks for {count}")
    if spec.kind != "generation" and spec.modality in ("image", "vector"):
        found = tuple(part.x.shape[2:])
        hold(
            found == spec.input_shape, f"inputs of the {name} set are {found}, and spec.input_shape {spec.input_shape}"
        )
    if part.x.is_floating_point():
        hold(bool(torch.isfinite(part.x).all()), f"inputs of the {name} set are not finite")


def steps_of_a_random_policy(run: Experiment) -> None:
    env, spec = drawn(run, [0, 1]), run.task.spec

    def act(transition: Transition) -> Tensor:
        outputs = spec.output_size if spec.discrete_actions else 2 * spec.output_size
        return transition.previous_reward.new_zeros(*transition.previous_reward.shape, outputs)

    rollout = collect(env, spec, act, 2, 1, env.generator())
    size = tuple(rollout.observation.shape[3:])
    want = spec.input_shape if len(spec.input_shape) == 1 else (int(np.prod(spec.input_shape)),)
    hold(size == want, f"observations are {size}, and spec.input_shape {spec.input_shape}")
    hold(bool(torch.isfinite(rollout.reward).all()), "rewards are not finite")


# The model


def memory(run: Experiment) -> None:
    model = cast(Any, run.algorithm).model.eval()
    inputs = torch.randn(4, 3, model.encode.size)
    with torch.no_grad():
        whole, value, *_ = model(inputs)
        state: list[Any] = []
        steps = []
        for one in inputs:
            output, values, *state = model(one[None], *state)
            steps.append((output[0], values[0]))
    for name, ours, theirs in (
        ("distributions", whole, [s[0] for s in steps]),
        ("values", value, [s[1] for s in steps]),
    ):
        hold(
            ours.shape == (stacked := torch.stack(theirs)).shape
            and torch.allclose(ours, stacked, rtol=CLOSE, atol=CLOSE),
            f"{name} of four steps at once differ from those of the same steps one by one: the state that forward "
            "returns must hold all that later steps need",
        )
    hold(
        value.shape == inputs.shape[:2], f"values are {tuple(value.shape)}, not [S, B], here {tuple(inputs.shape[:2])}"
    )


# The algorithm


def step(run: Experiment, iteration: int) -> dict[str, Tensor]:
    """Take an outer step as a run does."""
    algorithm: Algorithm = run.algorithm
    seed_generators(StepSeeds(run.seed)[iteration], run.task.device)
    batch = MetaBatches(run.task, algorithm.train_shape(run.task.shape), run.runner.meta_batch)[iteration]
    metrics = run.engine.meta_step(batch, iteration)
    hold(isinstance(metrics, dict), f"meta_step returned {type(metrics).__name__}, not a dictionary of scalars")
    return metrics


def state(module: nn.Module) -> dict[str, Any]:
    """Return a copy of a module's state."""
    return copy.deepcopy(dict(module.state_dict()))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of values that differ."""

    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else repr(a) == repr(b)

    return [name for name in before if not equal(before[name], after[name])]


def learns(make: Callable[[], Experiment]) -> None:
    run = make()
    before = state(run.algorithm)
    for iteration in range(2):
        for name, value in step(run, iteration).items():
            hold(bool(torch.isfinite(value).all()), f"{name} is {float(value)} in outer step {iteration}")
    if run.algorithm.learns and before:
        hold(bool(changes(before, state(run.algorithm))), "two outer steps changed no parameter")


def evaluates(run: Experiment) -> None:
    before = state(run.algorithm)
    found = [evaluate(run.algorithm, run.task, "val", 2, batch=2) for _ in range(2)]
    metric = run.task.metric
    curves = [each.curves for each in found]
    hold(metric in curves[0], f"evaluation has no {metric}, the task's metric; it has: {', '.join(curves[0])}")
    hold(same(*([curve[metric]] for curve in curves)), f"{metric} of the same two tasks differs at a second evaluation")
    changed = changes(before, state(run.algorithm))
    hold(not changed, f"evaluation changed {', '.join(changed[:3])}")


def goes_on(make: Callable[[], Experiment]) -> None:
    whole, first, second = make(), make(), make()
    for run, steps in ((whole, range(3)), (first, range(2))):
        for iteration in steps:
            step(run, iteration)
    second.algorithm.restore(first.algorithm.checkpoint())
    step(second, 2)
    differs = changes(state(whole.algorithm), state(second.algorithm))
    hold(
        not differs,
        f"after a restored checkpoint a step gives other values of {', '.join(differs[:3])}: whatever changes while "
        "training must be a parameter, a buffer or the state of an optimizer that is an attribute",
    )
