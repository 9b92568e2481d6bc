"""An exported optimizer on networks that it was not trained on, beside Adam's and SGD's each at five step sizes.

    metarun task=optimization/networks
    metarun export RUN --to optimizer
    python scripts/optimizer_curves.py RUN/optimizer/optimizer.pt --out curves.png --json curves.json

It trains a perceptron and a Conv-4 on letters, and a small transformer on the characters of the manual, for several
seeds, with the same initial weights and minibatches for every optimizer. The learned one has three multipliers of its
updates, lr=1, .3 and .1. The table has the mean training loss of the last tenth of the steps, with its 95 % interval
over seeds, and the milliseconds of a step of the optimizer alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metarun
from metarun import style
from metarun.cli.pages import DOCS
from metarun.errors import UserError
from metarun.evaluation.evaluator import Estimate

LEARNED = "learned"
STEP_SIZES = {LEARNED: (1.0, 0.3, 0.1), "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "sgd": (0.01, 0.03, 0.1, 0.3, 1.0)}
"""Step sizes; of the learned optimizer, multipliers of its updates."""
WAY, BATCH, CONTEXT = 20, 32, 32
Optimizers = dict[str, Callable[[Any], torch.optim.Optimizer]]
Batches = Iterator[tuple[Tensor, Tensor]]


class Transformer(nn.Module):
    """A causal transformer on characters: tokens [B, L] -> logits [B * L, characters]."""

    def __init__(self, characters: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.tokens(x) + self.places.weight
        return self.head(self.layers(embedded, mask=self.mask, is_causal=True)).flatten(0, 1)


def conv4(width: int = 16) -> nn.Module:
    """Four blocks of convolution, batch normalisation and pooling on 28 x 28 pixels, and a linear layer."""
    layers: list[nn.Module] = []
    for before in (1, width, width, width):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, WAY))


def mlp(width: int = 64) -> nn.Module:
    """Two hidden layers on 28 x 28 pixels."""
    layers = (nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, WAY))
    return nn.Sequential(*layers)


def letters(seed: int) -> Batches:
    """Minibatches of letters that no optimizer was trained on."""
    task = metarun.make("optimization/networks", size=28, examples=1024)
    images, classes = task.classes("test", seed, WAY)
    x, y = torch.tensor(images, dtype=torch.float32), torch.tensor(classes)
    while True:
        for rows in torch.randperm(len(y)).split(BATCH):
            yield x[rows], y[rows]


def text() -> Tensor:
    """The characters of the manual as numbers."""
    whole = "".join(page.read_text(encoding="utf-8") for page in sorted(Path(DOCS).glob("*.md")))
    number = {character: i for i, character in enumerate(sorted({*whole}))}
    return torch.tensor([number[character] for character in whole])


def characters(tokens: Tensor) -> Batches:
    """Minibatches of pieces of the text, with the next characters."""
    while True:
        first = torch.randint(len(tokens) - CONTEXT - 1, (BATCH, 1))
        piece = tokens[first + torch.arange(CONTEXT + 1)]
        yield piece[:, :-1], piece[:, 1:].flatten()


def problems(tokens: Tensor) -> dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batches]]]:
    """A network and its minibatches, by name."""
    count = int(tokens.max()) + 1
    return {
        "mlp": (mlp, letters),
        "conv4": (conv4, letters),
        "transformer": (lambda: Transformer(count), lambda seed: characters(tokens)),
    }


def optimizers(file: Path) -> Optimizers:
    """The learned optimizer and the others at each step size, by name."""
    found: Optimizers = {}
    for name, kind in ((LEARNED, metarun.load_optimizer(file)), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        for lr in STEP_SIZES[name]:
            found[f"{name} {lr:g}"] = lambda params, kind=kind, lr=lr: kind(params, lr=lr)  # type: ignore[misc]
    return found


def train(net: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, steps: int) -> tuple[list[float], float]:
    """Train a network; return the loss before each step, and the seconds of the optimizer's own steps."""
    losses, seconds = [], 0.0
    for _ in range(steps):
        x, y = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        began = time.process_time()
        optimizer.step()
        seconds += time.process_time() - began
        losses.append(float(loss.detach()))
    return losses, seconds


def measure(file: Path, seeds: int, steps: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Curves [seeds, steps] and milliseconds a step of every optimizer on every network."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for problem, (make, batches) in problems(text()).items():
        found[problem] = {}
        for name, optimizer in optimizers(file).items():
            curves, seconds = [], 0.0
            for seed in range(seeds):
                torch.manual_seed(seed)
                net = make()
                torch.manual_seed(seed)
                losses, taken = train(net, batches(seed), optimizer(net.parameters()), steps)
                curves.append(losses)
                seconds += taken
            found[problem][name] = {"curves": curves, "milliseconds": 1000 * seconds / seeds / steps}
            print(f"{problem} {name}: {end(curves)}", file=sys.stderr, flush=True)
    return found


def end(curves: list[list[float]]) -> Estimate:
    """The mean loss of the last tenth of the steps, over seeds."""
    last = torch.tensor(curves, dtype=torch.float64)[:, -max(1, len(curves[0]) // 10) :].mean(1)
    return Estimate.of(last.nan_to_num(nan=float("inf")))


def table(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """The lines that are printed: every optimizer, and how many of Adam's and SGD's the learned one beats."""
    lines = []
    for problem, rows in found.items():
        ends = {name: end(row["curves"]) for name, row in rows.items()}
        lines.append(problem)
        for name, row in rows.items():
            wins = {kind: [ends[name].mean < e.mean for n, e in ends.items() if kind in n] for kind in ("adam", "sgd")}
            verdict = ", ".join(f"{sum(won)} of {len(won)} of {kind}" for kind, won in wins.items())
            line = f"  {name:<12} {ends[name].mean:8.4f} +- {ends[name].ci95:.4f} {row['milliseconds']:8.2f} ms"
            lines.append(f"{line}   lower than {verdict}" if name.startswith(LEARNED) else line)
    return lines


def draw(found: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Draw the mean curves: a panel for each network."""
    import matplotlib.pyplot as plt

    colours = {LEARNED: "black", "adam": "C0", "sgd": "C1"}
    with style.applied():
        figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.4), layout="constrained")
        for axis, (problem, rows) in zip(axes, found.items(), strict=True):
            for name, row in reversed(rows.items()):
                kind = name.split()[0]
                curve = torch.tensor(row["curves"]).mean(0)
                smooth = F.avg_pool1d(curve[None, None], min(9, len(curve)), 1)[0, 0]
                shown = kind if name.endswith(f" {STEP_SIZES[kind][0]:g}") else None
                width = 2.0 if kind == LEARNED else 0.9
                axis.plot(smooth.numpy(), color=colours[kind], linewidth=width, label=shown, alpha=0.9)
            first = max(row["curves"][0][0] for row in rows.values())
            axis.set(title=problem, xlabel="step", ylim=(0, 1.3 * first))
        axes[0].set_ylabel("training loss")
        axes[-1].legend()
        style.save(figure, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="optimizer.pt, which `metarun export RUN --to optimizer` wrote")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, help="where to draw the curves")
    parser.add_argument("--json", type=Path, help="where to write the curves as JSON")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measure(asked.file, asked.seeds, asked.steps)
    print("\n".join(table(found)))
    print(f"{asked.seeds} seeds, {asked.steps} steps; intervals of 95 % over seeds; milliseconds of optimizer.step()")
    if asked.json:
        asked.json.write_text(json.dumps(found) + "\n")
    if asked.out:
        draw(found, asked.out)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"optimizer_curves: {error}")
