"""Plots: every family's picture is drawn, no texts overlap, and paths end where the last step led."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
from metarun.config.build import build
from metarun.reports import search
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.maze import distances
from metarun.tasks.rl.rollout import Rollout
from metarun.tasks.sheets import Query, Row, image_sheet, text_sheet
from tests.composed import composed
from tests.slow import slow_but

LONG = "a class with a very long name, of a folder that somebody made on a rainy day"
FAMILIES = {
    "regression/sinusoid": ["algorithm=maml", "algorithm.test_steps=2"],
    "regression/gp": ["algorithm=cnp"],
    "regression/gp task.kernel=sawtooth": ["algorithm=cnp"],
    "nlp/formal_languages": ["task.shot=3", "task.query=2", "task.lengths=[3,9]"],
    "vision/glyphs": ["algorithm=protonet", "task.way=10", "task.query=7", "task.test_ways=[]", "model.width=4"],
    "vision/field": ["algorithm.test_steps=1", "task.images.size=12"],
    "vision/completion": ["task.images.size=12", "task.shot=20", "task.test_shots=[5]"],
    "vision/generation": ["task.way=4", "task.judge.episodes=2", "task.judge.width=4", "task.judge.neighbours=2"],
    "rl/bandit": ["algorithm=rl2"],
    "rl/doors": ["algorithm=rl2"],
    "rl/navigation": ["algorithm=maml_trpo", "task.horizon=10"],
    "rl/sparse_navigation": ["algorithm=rl2", "model=gru_policy", "task.horizon=4", "task.episodes=3"],
    "rl/gridnavi": ["algorithm=varibad", "model=belief_policy"],
    "rl/darkroom": ["algorithm=rl2", "task.horizon=8", "task.size=3", "task.held_out=2", "task.key=true"],
    "rl/maze": ["algorithm=rl2", "task.horizon=8", "task.size=3"],
    "rl/pendulum": ["task.horizon=8"],
    "rl/cartpole": ["task.horizon=8"],
}  # fmt: skip


def experiment(family: str, *words: str) -> Any:
    """The experiment of a family with an untrained learner."""
    common = ["tracker.wandb=disabled", "runner.device=cpu", "runner.threads=1", "runner.plots=false"]
    return build(composed(*f"task={family}".split(), *words, *common))


def drawn(figure: Figure) -> tuple[FigureCanvasAgg, list[tuple[str, Any]]]:
    """The drawn figure, and each visible text with its box in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    hidden = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            outside = [tick for tick in ticks if not (ax.axison and low <= tick.get_loc() <= high)]
            hidden |= {label for tick in outside for label in (tick.label1, tick.label2)}
            hidden |= set() if ax.axison else {axis.label}
    shown = [t for t in texts if t not in hidden]
    return canvas, [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in shown]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that overlap by more than a pixel, and texts that leave the figure."""
    _, texts = drawn(figure)
    inside = figure.bbox
    found = [(a, b) for (a, x), (b, y) in combinations(texts, 2)
             if min(x.x1, y.x1) - max(x.x0, y.x0) > 1 and min(x.y1, y.y1) - max(x.y0, y.y0) > 1]  # fmt: skip
    return found + [
        (text, "the edge")
        for text, box in texts
        if box.x0 < inside.x0 - 1 or box.x1 > inside.x1 + 1 or box.y0 < inside.y0 - 1 or box.y1 > inside.y1 + 1
    ]


SLOW = ("vision/completion", "vision/generation", "vision/field", "rl/gridnavi", "rl/cartpole")


@pytest.mark.parametrize("family", slow_but({*FAMILIES} - {*SLOW}, FAMILIES))
def test_no_texts_of_a_familys_picture_overlap(family: str) -> None:
    made = experiment(family, *FAMILIES[family])
    with style.applied():
        figure = made.task.picture(made.algorithm)
        style.entitle(figure, "run/of_a_name", "protocol=" + "x, way=5, " * 40)
        assert overlaps(figure) == []


class Guided:
    """A learner that takes the actions of a function of the state, in as many episodes as a trial has."""

    def __init__(self, policy: Callable[[Tensor], Tensor]) -> None:
        self.policy = policy

    def rollouts(self, env: Environment) -> Iterator[Rollout]:
        steps: list[tuple[Tensor, ...]] = []
        for _ in range(env.episodes):
            state, mask = env.reset(2, None), torch.ones(env.tasks, 2, dtype=torch.bool)
            for _ in range(env.horizon):
                action = self.policy(state)
                moved, reward, ended = env.step(state, action, None)
                steps.append((env.observe(state), action, reward * mask, mask, ended & mask))
                state = torch.where(mask.view(env.tasks, 2, *[1] * (state.ndim - 2)), moved, state)
                mask = mask & ~ended
        yield Rollout(*(torch.stack(each, 2) for each in zip(*steps, strict=True)))


def test_a_path_that_reaches_the_goal_of_a_maze_is_drawn_to_it() -> None:
    task = experiment("rl/maze", "algorithm=rl2").task
    neighbours, (_, goals) = task.neighbours("test", range(3)), task.ends("test", range(3))
    away = distances(neighbours, goals)
    nearest = torch.tensor(away[np.arange(3)[:, None, None], neighbours].argmin(-1))
    with style.applied():
        figure = task.picture(Guided(lambda state: nearest[torch.arange(3)[:, None], state]))
    assert len(figure.axes) == 3 * task.episodes
    for number, ax in enumerate(figure.axes):
        goal = divmod(int(goals[number // task.episodes]), task.size)
        (dots,) = ax.collections
        assert tuple(dots.get_offsets()[-1]) == goal
        assert len(dots.get_offsets()) == 1 + away[number // task.episodes, task.ends("test", range(3))[0][number // 3]]
        assert "✓" in ax.get_title(loc="left")


def test_a_path_ends_where_its_last_step_led() -> None:
    task = experiment("rl/navigation", "algorithm=maml_trpo", "task.horizon=5").task
    with style.applied():
        figure = task.picture(Guided(lambda state: torch.ones_like(state)))
    ends = [line.get_xydata()[-1] for ax in figure.axes for line in ax.lines if line.get_linestyle() in ("-", "--")]
    assert len(ends) == 4 * 4  # of each task, the first and the last episode in two environments
    assert np.allclose(ends, 5 * 0.1)


def test_a_query_stands_in_the_row_of_its_class_apart_from_the_support_set() -> None:
    image = np.zeros((4, 6, 1))
    queries = [Query(image, LONG, True, 0.9), Query(image, "b", False), Query(image, "b", None)]
    rows = [Row("a", [image] * 3), Row(LONG, [image], queries, "3 of 9 queries")]
    with style.applied():
        figure = image_sheet(rows, "queries")
        assert overlaps(figure) == []
        (ax,) = figure.axes
        support, asked = [im.get_extent() for im in ax.images[:4]], [im.get_extent() for im in ax.images[4:]]
        assert len(asked) == 3
        assert min(x for x, *_ in asked) > max(right for _, right, *_ in support)
        assert {bottom for *_, bottom, _ in asked} == {support[3][2]} != {support[0][2]}
        told = [text.get_text() for text in ax.texts]
        assert any(text.startswith("✓ a class") and text.endswith("… 90 %") for text in told)
        assert "✗ b" in told
        assert "b" in told
        texts = text_sheet([Row("a", [LONG * 4], [Query(LONG * 4, LONG, False, 1.0)]), Row(LONG, [])])
        assert overlaps(texts) == []


@pytest.mark.parametrize("objectives", [("mse",), ("accuracy", "seconds")])
def test_no_texts_of_a_search_overlap(objectives: tuple[str, ...]) -> None:
    import optuna

    space = {"algorithm.outer_lr": {"low": 1e-4, "high": 1e-2, "log": True}, "algorithm.inner_lr": {"low": 1e-5,
             "high": 1.0, "log": True}, "algorithm.inner_steps": {"low": 1, "high": 5},
             "algorithm.norm": ["support", "transductive", "running"]}  # fmt: skip
    of = optuna.distributions
    kinds = {
        "algorithm.outer_lr": of.FloatDistribution(1e-4, 1e-2, log=True),
        "algorithm.inner_lr": of.FloatDistribution(1e-5, 1.0, log=True),
        "algorithm.inner_steps": of.IntDistribution(1, 5),
        "algorithm.norm": of.IntDistribution(0, 2),
    }
    made = optuna.create_study(directions=["minimize"] * len(objectives))
    for i in range(9):
        chosen = zip(kinds, (1e-4 * 1.6**i, 1e-5 * 3**i, 1 + i % 5, i % 3), strict=True)
        values = [float((3 * i) % 7), float(i)][: len(objectives)]
        made.add_trial(optuna.trial.create_trial(params=dict(chosen), distributions=kinds, values=values))
    study: Any = SimpleNamespace(
        optuna=made, objectives=dict.fromkeys(objectives, "minimize"), search=SimpleNamespace(space=space),
        best=lambda: made.best_trials,
    )  # fmt: skip
    for first in (["algorithm.outer_lr", "algorithm.inner_steps"], ["algorithm.inner_lr", "algorithm.norm"]):
        importance = dict.fromkeys([*first, *space], 0.25) if len(objectives) == 1 else {}
        with style.applied():
            figure = search.figure(study, importance)
            style.entitle(figure, "search/of_a_name", "9 complete, 3 pruned trials")
            assert overlaps(figure) == []
            assert len(figure.axes) == (5 if importance else 1)


def test_every_pair_of_colours_can_be_told_apart() -> None:
    """Contrast to white as WCAG 2.1 defines it; distances in OKLab under the colour blindnesses of Machado 2009."""
    assert all(1.05 / (linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05) >= 3 for colour in style.PALETTE)
    for seen in VISIONS.values():
        for a, b in combinations(style.PALETTE, 2):
            assert np.linalg.norm(oklab(seen @ linear(a)) - oklab(seen @ linear(b))) > 0.1, (a, b)
    looks = [(look["color"], look["marker"], look["linestyle"]) for look in map(style.look, range(14))]
    assert len(set(looks)) == 14
    assert len({look[1:] for look in looks}) == 14  # without colour too


VISIONS = {
    "usual": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                        [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip


def linear(colour: str) -> NDArray[np.float64]:
    """Linear RGB."""
    return np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates in which distances are about as large as they look (Ottosson 2020)."""
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
             [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    mixed = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
             [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.array(mixed) @ np.cbrt(np.array(cones) @ rgb.clip(0, 1))
