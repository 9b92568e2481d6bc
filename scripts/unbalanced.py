"""Accuracy of heads on a frozen encoder's features when the queries of a task are balanced, and when they are not.

    python scripts/unbalanced.py experiment=lite0/cifar_fs task.shot=1

Unbalanced numbers of queries are multinomial with a Dirichlet prior of concentration 2 (Veilleux et al. 2021,
arXiv:2106.13023). Both protocols have 75 queries over 5 classes.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from metarun.config.build import build, construct
from metarun.config.compose import compose
from metarun.tasks.episode import Labelled
from metarun.tasks.vision.base import ImageFewShot

HEADS = {"protonet": [], "softkmeans": [], "bdcspn": [], "laplacianshot": ["algorithm.head.features=l2"], "tim": [],
         "ptmap": []}  # fmt: skip
WAY, QUERIES, EPISODES, BATCH = 5, 75, 1000, 50
EVEN = np.full(WAY, QUERIES // WAY)


def features(task: ImageFewShot) -> list[torch.Tensor]:
    """Return the embeddings of each test class, [N, F]."""
    shape = task.shape.changed(way=WAY)
    task.batch("test", [0], shape)
    offsets = task.data.offsets
    return [task.examples(torch.arange(offsets[c], offsets[c + 1])) for c in task.classes["test"]]


def episode(
    classes: list[torch.Tensor], shot: int, counts: np.ndarray, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return support features [WAY * shot, F], query features [QUERIES, F] and the queries' labels [QUERIES]."""
    support, query = [], []
    for c, count in zip(generator.permutation(len(classes))[:WAY], counts, strict=True):
        rows = classes[c][torch.from_numpy(generator.permutation(len(classes[c]))[: shot + count])]
        support.append(rows[:shot])
        query.append(rows[shot:])
    return torch.cat(support), torch.cat(query), torch.arange(WAY).repeat_interleave(torch.from_numpy(counts))


def main(words: list[str]) -> None:
    """Print the accuracy of every head under both protocols."""
    run = build(compose([*words, "runner.device=cpu", "tracker.wandb=disabled"]).config)
    assert isinstance(run.task, ImageFewShot)
    classes, shot = features(run.task), run.task.shape.shot
    known = torch.arange(WAY).repeat_interleave(shot).expand(BATCH, -1)
    for kind in ("balanced", "unbalanced"):
        generator = np.random.Generator(np.random.Philox(0))
        right: dict[str, list[float]] = {name: [] for name in HEADS}
        for _ in range(EPISODES // BATCH):
            drawn = []
            for _ in range(BATCH):
                shares = generator.dirichlet(np.full(WAY, 2.0))
                counts = generator.multinomial(QUERIES, shares) if kind == "unbalanced" else EVEN
                drawn.append(episode(classes, shot, counts, generator))
            support, query, y = (torch.stack(part) for part in zip(*drawn, strict=True))
            for name, keys in HEADS.items():
                head = construct(compose([f"algorithm={name}", *keys]).config["algorithm"]["head"])
                head.prepare(tuple(support.shape[2:]), run.task.spec)
                with torch.no_grad():
                    predicted = head.fit(Labelled(support, known, WAY))(query).argmax(-1)
                right[name] += (predicted == y).double().mean(1).tolist()
        for name, values in right.items():
            half = 1.96 * np.std(values, ddof=1) / len(values) ** 0.5
            print(f"{kind:10} {shot} shot {name:14} {100 * np.mean(values):.1f} ± {100 * half:.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
