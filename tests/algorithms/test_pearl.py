"""PEARL: posteriors, densities, losses and targets against direct derivations, and what its replay and trials hold."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution, kl_divergence

from metarun.algorithms.rl.pearl import PEARL
from metarun.algorithms.rl.replay import Steps, TaskReplay
from metarun.algorithms.rl.sac import soft_target, squashed, temperature_loss
from metarun.errors import UserError
from metarun.models.context_policy import ContextPolicy
from metarun.tasks.episode import Spec
from metarun.tasks.rl.base import Environment, Wrapper
from metarun.tasks.rl.gridnavi import GridNavi
from metarun.tasks.rl.navigation import Navigation
from metarun.tasks.rl.sparse_navigation import SparseNavigation

SPARSE = SparseNavigation(0, radius=0.6, horizon=6, episodes=4)
PLANE = Navigation(0, actions="scaled", reward="distance", horizon=8, episodes=3, test_goals="drawn")
"""Episodes end at the goal, which the fixture ``near`` makes wide enough to be met by chance."""

SPOTS = GridNavi(0, size=4, horizon=4, episodes=4, observation="coordinates")


def pearl(task: Any = SPARSE, next_observation: bool = False, **changed: Any) -> PEARL:
    torch.manual_seed(0)
    model = ContextPolicy(
        task.spec,
        latent=3,
        next_observation=next_observation,
        init_variance=3.0,
        encoder=[7],
        actor=[8, 6],
        critics=[9, 5],
    )
    values: dict[str, Any] = {
        "rollouts": 2, "test_rollouts": 2, "prior_episodes": 2, "contexts": "trial", "replay_tasks": 6,
        "gradient_steps": 2, "tasks": 3, "context": 10, "batch": 5, "discount": 0.8, "shaped": True,
        "reward_scale": 2.0, "temperature": 0.3, "kl_weight": 0.1, "target_rate": 0.25, "outer_lr": 1e-2,
    }  # fmt: skip
    return PEARL(model, task.spec, **(values | changed))


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.tasks.rl.navigation.REACHED", 0.2)


def random_steps(*shape: int) -> Steps:
    def normal(*size: int) -> Tensor:
        return torch.randn(*shape, *size)

    ended = (torch.rand(shape) < 0.4).to(torch.get_default_dtype())
    return Steps(normal(2), normal(2).tanh(), normal(), normal(2), normal(), ended)


# Inference


@pytest.mark.usefixtures("float64")
def test_the_posterior_is_the_product_of_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its density on a grid, the product of those of single steps, normalised there."""
    learner = pearl()
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    context = random_steps(2, 4).packed()[..., :5]
    z, kl = learner.infer(context)
    grid, divergences = torch.linspace(-8, 8, 20_001), []
    for task in range(2):
        mean, spread = learner.model.encoder(context[task]).chunk(2, -1)
        variance = spread.exp()
        marginals = []
        for latent in range(3):
            logp = sum(Normal(mean[i, latent], variance[i, latent].sqrt()).log_prob(grid) for i in range(4))
            p = (logp - logp.max()).exp()  # type: ignore[union-attr]
            p = p / p.sum()
            centre = (p * grid).sum()
            marginals.append((centre, (p * (grid - centre) ** 2).sum().sqrt()))
            torch.testing.assert_close(z[task, latent], sum(marginals[-1]), rtol=1e-6, atol=1e-6)
        posterior = Normal(*(torch.stack(x) for x in zip(*marginals, strict=True)))
        divergences.append(kl_divergence(posterior, Normal(torch.zeros(3), torch.ones(3))).sum())
    torch.testing.assert_close(kl, torch.stack(divergences).mean(), rtol=1e-6, atol=1e-6)


def test_steps_after_a_truncation_are_no_experience() -> None:
    """Where the simulator cuts an episode off before the horizon: nothing of what comes then is learned from."""

    class Cut(Wrapper):
        def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
            self.time = 0
            return super().reset(num_envs, generator)

        def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> Any:
            self.time += 1
            return super().step(state, action, generator)

        def truncated(self) -> Tensor:
            return torch.full((self.tasks, 2), self.time >= 3)

    learner = pearl()
    rollout, _ = learner.trial(Cut(SPARSE.batch("train", range(2))), 2, explore=True)
    assert rollout.mask.unflatten(-1, (4, 6)).sum(-1).eq(3).all()
    assert not rollout.terminated.any()


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("task", [SPARSE, PLANE], ids=["sparse", "ending"])
def test_a_trial_acts_on_the_prior_then_on_all_it_experienced(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """z is one deviation above the mean everywhere: its actions are those of each copy's own earlier steps."""
    learner = pearl(task, next_observation=True, rollouts=2)
    env = task.batch("train", range(3))
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    with torch.no_grad():
        rollout, packed = learner.trial(env, 2, explore=False)
        steps = learner.unpack(packed)
        assert task is SPARSE or not rollout.mask.all()
        for t in range(3):
            for e in range(2):
                on = rollout.mask[t, e]
                for episode in range(task.episodes):
                    z = torch.ones(3)
                    if episode >= 2:
                        before = on.clone()
                        before[episode * task.horizon :] = False
                        seen = torch.cat(
                            [
                                rollout.observation[t, e], rollout.action[t, e], rollout.reward[t, e][:, None],
                                steps.after[t, e],
                            ], -1,
                        )[before]  # fmt: skip
                        mean, spread = learner.model.encoder(seen).chunk(2, -1)
                        variance = spread.exp()
                        total = (1 / variance).sum(0)
                        z = (mean / variance).sum(0) / total + total.rsqrt()
                    for step in range(episode * task.horizon, (episode + 1) * task.horizon):
                        if on[step]:
                            output = learner.model.act(rollout.observation[t, e, step], z)
                            torch.testing.assert_close(rollout.action[t, e, step], output[:2].tanh(), atol=2e-4, rtol=0)


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("task", [SPARSE, PLANE], ids=["sparse", "ending"])
def test_what_is_kept_of_steps(task: Any) -> None:
    """What was seen next, at an episode's end too; the shaped reward; and that a horizon is no end of the task."""
    learner = pearl(task)
    env = task.batch("train", range(3))
    with torch.no_grad():
        rollout, packed = learner.trial(env, 4, explore=True)
    steps = learner.unpack(packed)
    assert torch.equal(steps.observation, rollout.observation)
    assert torch.equal(steps.terminated.bool(), rollout.terminated)
    on = rollout.mask
    moved = rollout.observation + 0.1 * rollout.action
    torch.testing.assert_close(steps.after[on], moved[on])
    distance = (moved - env.goals[:, :, None]).norm(dim=-1)
    torch.testing.assert_close(steps.shaped[on], -distance[on])
    inside = torch.where(distance <= 0.6, 1 - distance, 0) if task is SPARSE else -distance
    torch.testing.assert_close(steps.reward[on], inside[on])
    ends = on & ((moved - env.goals[:, :, None]).abs().amax(-1) < 0.2)
    assert not steps.terminated[on & ~ends].any()
    assert task is SPARSE or torch.equal(steps.terminated.bool(), ends)


# Learning


@pytest.mark.usefixtures("float64")
def test_squashed_actions_have_the_density_of_their_distribution() -> None:
    """It integrates to 1 over actions, and is that of torch's own transformed Gaussian."""
    output = torch.tensor([0.4, -0.3])
    action, logp = squashed(output.expand(200_001, 2), torch.linspace(-9, 9, 200_001)[:, None])
    assert float(torch.trapezoid(logp.exp(), action[:, 0])) == pytest.approx(1, abs=1e-6)
    output = 0.5 * torch.randn(50, 6)
    normal = Independent(Normal(output[:, :3], output[:, 3:].exp()), 1)
    theirs = TransformedDistribution(normal, TanhTransform(cache_size=1))
    noise = torch.randn(50, 3)
    action, logp = squashed(output, noise)
    u = output[:, :3] + output[:, 3:].exp() * noise
    torch.testing.assert_close(action, u.tanh())
    torch.testing.assert_close(logp, theirs.log_prob(TanhTransform(cache_size=1)(u).clamp(-1 + 1e-15, 1 - 1e-15)))
    assert torch.isfinite(squashed(torch.tensor([30.0, 0.0]).float(), torch.zeros(1).float())[1])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shaped", [True, False])
def test_losses_are_the_formulas_step_by_step(shaped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = pearl(shaped=shaped)
    for p in learner.model.targets.parameters():
        p.add_(0.1)  # to differ from the critics
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.full_like(x, 0.7))
    steps, z = random_steps(3, 5), torch.randn(3, 1, 3).expand(-1, 5, -1)
    model = learner.model

    def value(nets: Any, which: int, o: Tensor, a: Tensor, z: Tensor) -> Tensor:
        x = torch.cat([o, a, z])
        for number in (0, 2, 4):
            x = x @ nets[number].weight[which] + nets[number].bias[which, 0]
            x = x.relu() if number < 4 else x
        return x[0]

    def drawn(o: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = model.actor(torch.cat([o, z])).chunk(2)
        u = mean + 0.7 * log_std.exp()
        density = Normal(mean, log_std.exp()).log_prob(u) - (1 - u.tanh() ** 2).log()
        return u.tanh(), density.sum()

    errors, losses = [], []
    for t in range(3):
        for b in range(5):
            o, a, r, after, better, ended = (x[t, b] for x in steps)
            action, logp = drawn(after, z[t, b])
            least = min(value(model.targets, i, after, action, z[t, b]) for i in range(2))
            y = 2.0 * (better if shaped else r) + (0.0 if ended else 0.8) * (least - 0.3 * logp)
            errors.append(sum((value(model.critics, i, o, a, z[t, b]) - y.detach()) ** 2 for i in range(2)))
            action, logp = drawn(o, z[t, b])
            losses.append(0.3 * logp - min(value(model.critics, i, o, action, z[t, b]) for i in range(2)))
    expected, parameters = torch.stack(errors).mean(), list(model.critics.parameters())  # type: ignore[arg-type]
    found = learner.critic_loss(z, steps)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(x, parameters) for x in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    found, expected = learner.actor_loss(z, steps.observation)[0], torch.stack(losses).mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(x, learner.actor) for x in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_only_the_end_of_a_task_ends_the_sum() -> None:
    values, logp = torch.tensor([[3.0, 3.0], [2.0, 5.0]]), torch.tensor([-1.0, 1.0])
    target = soft_target(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), values, logp, 0.5, 0.9)
    torch.testing.assert_close(target, torch.tensor([1 + 0.9 * (2 + 0.5), 1.0]))


def test_the_temperature_rises_while_entropy_is_too_low() -> None:
    log_temperature = torch.zeros((), requires_grad=True)
    for entropy, sign in ((-3.0, -1), (-1.0, 1)):  # less and more than minus two
        loss = temperature_loss(log_temperature, torch.full((4,), -entropy), -2)
        (gradient,) = torch.autograd.grad(loss, log_temperature)
        assert float(gradient) == pytest.approx(sign)
    learner = pearl(temperature=None)
    metrics = learner.meta_step(SPARSE.batch("train", range(4)), 0)
    assert learner.log_temperature != 0
    assert 0 < float(metrics["temperature"]) != 1


def test_who_learns_from_whom() -> None:
    """The actor's loss moves the actor, the critics' the critics and the encoder, with no divergence to help."""
    learner = pearl(kl_weight=0.0)
    learner.meta_step(SPARSE.batch("train", range(4)), 0)
    steps = random_steps(3, 5)
    z, _ = learner.infer(random_steps(3, 10).packed()[..., :5])
    wide = z[:, None].expand(-1, 5, -1)
    owners = {id(p): name.split(".")[0] for name, p in learner.model.named_parameters()}

    def reached(loss: Tensor) -> set[str]:
        learner.zero_grad()
        loss.backward(retain_graph=True)
        return {owners[id(p)] for p in learner.model.parameters() if p.grad is not None and p.grad.any()}

    assert reached(learner.critic_loss(wide, steps)) == {"encoder", "critics"}
    assert "encoder" not in reached(learner.actor_loss(wide.detach(), steps.observation)[0])

    held = {owners[id(p)] for group in learner.optimizer.param_groups for p in group["params"]}
    acting = {owners[id(p)] for group in learner.actor_optimizer.param_groups for p in group["params"]}
    assert (held, acting) == ({"encoder", "critics"}, {"actor"})
    given: list[bool] = []
    whole = learner.actor_loss

    def watched(z: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
        given.append(z.requires_grad)
        return whole(z, observation)

    learner.actor_loss = watched  # type: ignore[method-assign]
    before = {name: p.clone() for name, p in learner.model.named_parameters()}
    learner.gradient_step()
    assert given == [False]
    moved = {name.split(".")[0] for name, p in learner.model.named_parameters() if (p != before[name]).any()}
    assert moved == {"encoder", "critics", "actor", "targets"}
    for name, target in learner.model.targets.named_parameters():
        now = learner.model.critics.get_parameter(name)
        torch.testing.assert_close(target, 0.75 * before[f"targets.{name}"] + 0.25 * now)


def test_the_divergence_moves_the_encoder_by_its_weight() -> None:
    """One step of plain descent from the same point, by the same random numbers, with weights 0, 1 and 3."""

    def step(kl_weight: float) -> dict[str, Tensor]:
        learner = pearl(kl_weight=kl_weight, gradient_steps=0)
        learner.replay.add(*replayed(learner))
        learner.optimizer = torch.optim.SGD(learner.critics, lr=1.0)
        torch.manual_seed(1)
        before = {name: p.clone() for name, p in learner.model.named_parameters()}
        learner.gradient_step()
        return {name: (p - before[name]).detach() for name, p in learner.model.named_parameters()}

    def replayed(learner: PEARL) -> tuple[Tensor, Tensor, Tensor]:
        rollout, steps = learner.trial(SPARSE.batch("train", range(4)), 2, explore=True)
        return steps, rollout.mask, rollout.mask

    none, once, thrice = (step(weight) for weight in (0.0, 1.0, 3.0))
    for name in none:
        if name.startswith("encoder."):
            torch.testing.assert_close(thrice[name] - none[name], 3 * (once[name] - none[name]))
            assert (once[name] != none[name]).any()
        elif name.startswith("critics."):
            assert torch.equal(once[name], none[name])


class Sides(Environment):
    """Nothing is seen, and an action pays itself, or itself negated: one step tells which."""

    def __init__(self, tasks: range) -> None:
        super().__init__(0, "train", tasks, horizon=2, episodes=2)
        self.device = torch.device("cpu")
        self.side = torch.where(torch.rand(len(tasks), 1) < 0.5, 1.0, -1.0)

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return torch.zeros(self.tasks, num_envs, 1)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        reward = self.side * action[..., 0]
        return state, reward, torch.zeros_like(reward, dtype=torch.bool)


def test_it_learns_to_adapt() -> None:
    """The first episode of a trial cannot know the side, the second does."""
    torch.manual_seed(0)
    spec = Spec("control", "vector", (1,), 1)
    model = ContextPolicy(
        spec, latent=1, next_observation=False, init_variance=4.0, encoder=[16], actor=[16], critics=[16]
    )
    learner = PEARL(
        model, spec, rollouts=2, test_rollouts=1, prior_episodes=1, contexts="trial", replay_tasks=40,
        gradient_steps=20, tasks=16, context=4, batch=8, discount=0.5, shaped=False, reward_scale=1.0,
        temperature=0.05, kl_weight=0.01, target_rate=0.05, outer_lr=1e-2,
    )  # fmt: skip
    for iteration in range(10):
        learner.meta_step(Sides(range(20)), iteration)
    first, second = learner.evaluate(Sides(range(200)))["episode_return"].mean(0)
    assert abs(float(first)) < 0.5
    assert float(second) > 1.5


# Replay


def test_a_resumed_learner_goes_on_with_its_replay() -> None:
    learner = pearl()
    batch = SPARSE.batch("train", range(3), SPARSE.shape)
    learner.meta_step(batch, 0)
    resumed = pearl()
    resumed.restore(copy.deepcopy(learner.checkpoint()))
    for each in (learner, resumed):
        torch.manual_seed(1)
        each.meta_step(SPARSE.batch("train", range(3, 6), SPARSE.shape), 1)
    assert resumed.replay.seen == learner.replay.seen == 6
    assert torch.equal(resumed.replay.data, learner.replay.data)
    for name, value in learner.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_replay_gives_only_steps_of_the_task_that_count() -> None:
    """Steps are named 100 * task + 10 * trial + number; there are 3 trials, and a context is of one of them."""
    replay = TaskReplay(5)
    counts, contexts = torch.rand(7, 3, 8) < 0.6, torch.rand(7, 3, 8) < 0.5
    counts[..., 3] = contexts[..., 3] = True
    names = 100.0 * torch.arange(7)[:, None, None] + 10 * torch.arange(3)[:, None] + torch.arange(8)
    for tasks in ([0, 1, 2], [3, 4], [5, 6]):
        replay.add(names[tasks][..., None], counts[tasks], contexts[tasks])
    assert replay.seen == 7
    places = replay.choose(200)
    assert set(places.tolist()) == set(range(5))
    drawn, context = replay.draw(places, 300)[..., 0], replay.draw_context(places, 300)[..., 0]
    for place, task in {0: 5, 1: 6, 2: 2, 3: 3, 4: 4}.items():
        assert set(drawn[places == place].flatten().tolist()) == set(names[task][counts[task]].tolist())
        allowed = counts[task] & contexts[task]
        for one in context[places == place]:
            trial = int(one[0]) // 10 % 10
            assert set(one.tolist()) == set(names[task, trial][allowed[trial]].tolist())
    assert len(set((context[:, 0] // 10 % 10).tolist())) == 3
    again = TaskReplay(5)
    again.restore(replay.checkpoint())
    for of in ("draw", "draw_context"):
        torch.manual_seed(1)
        one = getattr(replay, of)(replay.choose(4), 6)
        torch.manual_seed(1)
        assert torch.equal(one, getattr(again, of)(again.choose(4), 6))
    with pytest.raises(ValueError, match="a replay of 5 tasks"):
        TaskReplay(6).restore(replay.checkpoint())


def test_before_it_is_full_a_replay_gives_what_is_there() -> None:
    replay, every = TaskReplay(50), torch.ones(3, 1, 2, dtype=torch.bool)
    replay.add(torch.ones(3, 1, 2, 1), every, every)
    assert set(replay.choose(100).tolist()) == {0, 1, 2}
    assert (replay.draw(replay.choose(100), 5) == 1).all()


@pytest.mark.parametrize(("contexts", "count"), [("trial", 24), ("prior", 12)])
def test_contexts_may_be_of_the_prior_episodes_alone(contexts: str, count: int) -> None:
    learner = pearl(contexts=contexts)
    learner.meta_step(SPARSE.batch("train", range(4)), 0)
    assert learner.replay.counts is not None
    assert learner.replay.counts[:, :4].tolist() == [4 * [2 * [24]], 4 * [2 * [count]]]
    assert learner.replay.data is not None
    assert learner.replay.data.shape == (6, 2, 24, 9)


def test_packing_is_undone() -> None:
    steps = random_steps(2, 3)
    for ours, theirs in zip(Steps.unpacked(steps.packed(), 2, 2), steps, strict=True):
        assert torch.equal(ours, theirs)


# Misuse


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"discrete; what fits: algorithm=rl2"):
        pearl(SPOTS)
    short = SparseNavigation(0, radius=0.2, horizon=3, episodes=2)
    with pytest.raises(UserError, match=r"task.episodes=2.*use 3 or more"):
        pearl(short).evaluate(short.batch("val", range(2)))
    with pytest.raises(UserError, match=r"algorithm.replay_tasks=6 is less than the 7 tasks"):
        pearl().meta_step(SPARSE.batch("train", range(7)), 0)
