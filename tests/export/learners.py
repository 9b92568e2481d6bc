"""Small adapted learners, saved as ``metarun adapt`` saves them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from metarun.adapted.learner import AdaptedLearner
from metarun.config.build import construct
from metarun.config.catalogue import entry
from metarun.tasks.episode import Spec
from metarun.tasks.inputs import Inputs
from metarun.tasks.vision.images import Preparation
from tests.models.tiny_bert import tiny_bert


def options(**chosen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The values of options with changes, by section: ``model={"option": "conv4", "width": 4}``."""
    found = {}
    for section, values in chosen.items():
        known = entry(section, values.pop("option"))
        assert known is not None
        found[section] = {**known.section, **values}
    return found


def saved(
    folder: Path, spec: Spec, items: Any, targets: list[Any], model: dict[str, Any], algorithm: dict[str, Any],
    **settings: Any,
) -> AdaptedLearner:  # fmt: skip
    sections = options(model=model, algorithm=algorithm)
    torch.manual_seed(0)
    net = construct(sections["model"], spec=spec, texts=[])
    learner = construct(sections["algorithm"], model=net, spec=spec)
    preparation = Preparation(*spec.input_shape) if spec.modality == "image" else None
    adapted = AdaptedLearner.adapt(learner, Inputs(spec, preparation), items, targets, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    adapted.save(folder, sections)
    return adapted


def images(folder: Path, algorithm: str = "protonet", **settings: Any) -> AdaptedLearner:
    """Prototypes, or another learner, of a small Conv-4 for three classes of noise of different brightness."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(60, (9, 3, 16, 16), generator=random) + torch.arange(3).repeat_interleave(3)[
        :, None, None, None] * 90  # fmt: skip
    names = ["dark"] * 3 + ["grey"] * 3 + ["light"] * 3
    return saved(folder, Spec("classification", "image", (3, 16, 16), 3), list(pixels.to(torch.uint8)), names,
                 {"option": "conv4", "width": 4, "depth": 2}, {"option": algorithm}, **settings)  # fmt: skip


def numbers(folder: Path, algorithm: str = "maml", steps: int | None = 3, **settings: Any) -> AdaptedLearner:
    """MAML, or another learner, adapted to a line."""
    x = torch.linspace(-1, 1, 6)[:, None]
    spec = Spec("regression", "vector", (1,), 1)
    sections: dict[str, Any] = {"model": {"option": "mlp"}, "algorithm": {"option": algorithm}}
    return saved(folder, spec, x, (2 * x).tolist(), **sections, steps=steps, **settings)


def texts(folder: Path, **settings: Any) -> AdaptedLearner:
    """Prototypes of a small frozen BERT for two classes of sentences."""
    known = {"flight": ["book a flight to rome", "a flight"], "card": ["my card is blocked", "block my card"]}
    items, names = [text for each in known.values() for text in each], [n for n, each in known.items() for _ in each]
    model = {"option": "encoder", "name": str(tiny_bert(folder / "bert", layers=1)), "max_tokens": 20}
    return saved(folder, Spec("classification", "text", (), 2), items, names, model, {"option": "protonet"}, **settings)
