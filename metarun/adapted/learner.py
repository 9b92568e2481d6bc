"""A learner adapted to one task: its support set, its meta-parameters, and the conversion of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.adapted.columns import Columns
from metarun.adapted.predictions import LeaveOneOut, Predictions
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.errors import RunFailed, UserError, require
from metarun.evaluation.calibration import best_temperature
from metarun.models.pretrained import BATCH_SIZE, Embedder, embedder_of, encoder_stamp
from metarun.tasks.episode import EpisodeShape, Labelled
from metarun.tasks.inputs import Inputs
from metarun.tasks.rng import forked_rng
from metarun.training.checkpoint import fixed_head

FILE = "learner.pt"
AT_ONCE = 2048
"""Approximate number of examples in one forward pass. With transductive normalisation, queries of one pass interact."""


class AdaptedLearner:
    """A learner adapted to one task.

    A learner with a fixed number of outputs can be adapted to fewer classes, and then predicts only these.

    Attributes:
        temperature: Number by which logits are divided for probabilities.
        abstain: Probability below which ``metarun predict`` and ``metarun serve`` name no class; ``None``: always one.
        columns: The columns of the support set's table, if it was one.
        about: Plain values on its origin and scores, for its model card.

    Args:
        algorithm: The algorithm with its meta-parameters.
        inputs: Conversion of the inputs.
        support: The support set of the task, with T = 1.
        classes: Names of the classes in the order of their labels; empty in regression.
        steps: Adaptation steps; ``None``: as many as on the run's test tasks.
        seed: Seed of the adaptation's random numbers.
    """

    def __init__(
        self,
        algorithm: SupervisedAlgorithm,
        inputs: Inputs,
        support: Labelled,
        classes: Sequence[str],
        *,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.algorithm, self.inputs, self.support = algorithm.eval(), inputs, support
        self.classes, self.steps, self.seed = list(classes), steps, seed
        self._answer = self._adapted(support)
        self.temperature = algorithm.temperature or 1.0
        self.abstain: float | None = None
        self.columns: Columns | None = None
        self.about: dict[str, Any] = {}

    @classmethod
    def adapt(
        cls,
        algorithm: SupervisedAlgorithm,
        inputs: Inputs,
        items: Sequence[Any],
        targets: Sequence[Any],
        *,
        steps: int | None = None,
        seed: int = 0,
    ) -> AdaptedLearner:
        """Adapt a learner to labelled examples.

        Args:
            algorithm: The algorithm with its meta-parameters.
            inputs: Conversion of the inputs.
            items: Paths of images, texts, or rows of numbers.
            targets: Class names, or rows of numbers in regression.
            steps: Adaptation steps; ``None``: as many as on the run's test tasks.
            seed: Seed of the adaptation's random numbers.

        Returns:
            The adapted learner.

        Raises:
            UserError: There are fewer than 2 classes, or more than the learner has outputs.
        """
        spec = inputs.spec
        device = state_like(algorithm).device
        x = inputs.tensor(items, algorithm.model).to(device)[None]
        if spec.kind == "regression":
            y = torch.as_tensor(targets, dtype=torch.get_default_dtype(), device=device).view(1, len(items), -1)
            return cls(algorithm, inputs, Labelled(x, y), [], steps=steps, seed=seed)
        classes = sorted(set(targets))
        require(len(classes) >= 2, f"the support set has {len(classes)} class; at least 2 are needed")
        way = fitting_way(algorithm, len(classes))
        y = torch.tensor([[classes.index(target) for target in targets]], device=device)
        return cls(algorithm, inputs, Labelled(x, y, way), classes, steps=steps, seed=seed)

    def predict(self, items: Any) -> Predictions:
        """Predict one input or several.

        Args:
            items: Images as paths, Pillow images, arrays or tensors ([H, W], [H, W, C] or [C, H, W]; uint8 or floats in
                0..1), texts, or rows of numbers. A string is one path or one text.

        Returns:
            Predictions for N inputs.

        Raises:
            TypeError: An item has another type.
            UserError: An image cannot be read, or a number is not finite.
            RunFailed: A prediction is not finite because the adaptation diverged.
        """
        return self.predict_prepared(self.embed(self.inputs.raw(items, self.algorithm.model)))

    @cached_property
    def embedder(self) -> Embedder | None:
        """The frozen encoder of the learner, on the device of its support set; ``None`` if it has none."""
        found = embedder_of(self.algorithm.model)
        return None if found is None else found.to(self.support.x.device)

    def embed(self, raw: Tensor) -> Tensor:
        """Embed inputs if the learner has a frozen encoder. Nothing is cached, unlike in :meth:`Inputs.tensor`.

        Args:
            raw: Inputs [N, ...] as converted by :meth:`Inputs.raw`.

        Returns:
            The inputs that the learner reads, embeddings [N, F] or the same.
        """
        if self.embedder is None:
            return raw
        device = self.support.x.device
        with torch.no_grad():
            return torch.cat([self.embedder(part.to(device)) for part in raw.split(BATCH_SIZE)])

    def predict_prepared(self, x: Tensor) -> Predictions:
        """Predict inputs that are tensors already.

        Args:
            x: Inputs [N, ...] as converted by :meth:`Inputs.tensor`.

        Returns:
            Predictions for N inputs.

        Raises:
            RunFailed: A prediction is not finite because the adaptation diverged.
        """
        x = x.to(self.support.x.device)
        with torch.no_grad():
            answer = torch.cat([self._answer(part[None])[0] for part in x.split(AT_ONCE)])
        bad = int((~torch.isfinite(answer).flatten(1).all(1)).sum())
        if bad:
            raise RunFailed(
                f"{bad} of {len(answer)} predictions are not finite: the adaptation to {self.support.y.shape[1]} "
                "examples diverged; try smaller inputs, fewer --steps or a smaller algorithm.inner_lr"
            )
        return self._predictions(answer)

    def leave_one_out(self) -> LeaveOneOut:
        """Evaluate the learner on its own support set, each example without itself in the support set.

        Returns:
            The score, and the number of examples that were not evaluated.
        """
        tested, answer = self.left_out
        y = self.support.y[0]
        if not len(tested):
            return LeaveOneOut(None, 0, len(y))
        good = torch.isfinite(answer).flatten(1).all(1)
        evaluated = int(good.sum())
        if not evaluated:
            return LeaveOneOut(None, 0, len(y) - len(tested), len(tested))
        score = float(self._score(answer, y[tested])[good].mean())
        rows, predictions = tested[good].tolist(), self._predictions(answer[good])
        return LeaveOneOut(score, evaluated, len(y) - len(tested), len(tested) - evaluated, rows, predictions)

    def calibrate(self) -> None:
        """Set the temperature of the probabilities to the one of the smallest leave-one-out loss, within 1/4..4.

        Nothing changes in regression, or with fewer than 20 support examples to evaluate.
        """
        tested, answer = self.left_out
        if not self.classes or len(tested) < 20:
            return
        logits, y = answer[:, : len(self.classes)], self.support.y[0][tested]
        self.temperature = best_temperature(logits, y, torch.logspace(-2, 2, 41, base=2).tolist())

    @cached_property
    def left_out(self) -> tuple[Tensor, Tensor]:
        """Indices of the support examples that can be left out, and the prediction of each by all others."""
        x, y = self.support.x[0], self.support.y[0]
        count = len(y)
        alone = torch.zeros(count, dtype=torch.bool, device=y.device)
        if self.classes:
            alone = torch.bincount(y, minlength=len(self.classes))[y] == 1
        tested = torch.arange(count, device=y.device)[~alone]
        if count < 2 or not len(tested):
            return tested[:0], y.new_zeros(0)
        answers = []
        for part in tested.split(max(1, AT_ONCE // count)):
            rest = torch.stack([torch.cat([torch.arange(i), torch.arange(i + 1, count)]) for i in part.tolist()])
            rest = rest.to(y.device)
            with torch.no_grad():
                answers.append(self._adapted(Labelled(x[rest], y[rest], self.support.way))(x[part][:, None])[:, 0])
        return tested, torch.cat(answers)

    def save(self, folder: Path, sections: Mapping[str, Any]) -> Path:
        """Save everything that :func:`metarun.adapted.load` needs in one file of tensors and plain values.

        Reading the file runs no code. The vocabulary and statistics of a text model are part of its state. No training
        text is stored.

        Args:
            folder: Folder of the file.
            sections: Configuration of ``model`` and ``algorithm``.

        Returns:
            Path of the file.
        """
        path = folder / FILE
        torch.save(
            {
                "format": 2,
                "sections": {key: dict(sections[key]) for key in ("model", "algorithm")},
                "inputs": self.inputs.as_dict(),
                "dtype": str(state_like(self.algorithm).dtype).removeprefix("torch."),
                "precision": self.algorithm.precision,
                "parameters": self.algorithm.state_dict(),
                "support": (self.support.x.cpu(), self.support.y.cpu(), self.support.way),
                "classes": self.classes,
                "steps": self.steps,
                "seed": self.seed,
                "temperature": self.temperature,
                "abstain": self.abstain,
                "columns": self.columns and self.columns.as_dict(),
                "about": self.about,
                "encoder": encoder_stamp(self.algorithm.model),
            },
            path,
        )
        return path

    def output(self, x: Tensor) -> Tensor:
        """Compute predictions in one pass, as a part of another computation.

        Args:
            x: Inputs [N, ...] as converted by :meth:`Inputs.tensor`, on the device of the support set.

        Returns:
            Probabilities [N, classes], or values [N, outputs] in regression.
        """
        return self._output(self._answer(x[None])[0])

    def _output(self, answer: Tensor) -> Tensor:
        return (answer[:, : len(self.classes)] / self.temperature).softmax(-1) if self.classes else answer

    def _adapted(self, support: Labelled) -> Callable[[Tensor], Tensor]:
        """Return the predictor [T, Nq, ...] -> [T, Nq, outputs] adapted to T support sets."""
        with torch.no_grad(), forked_rng(support.x.device, self.seed), self.algorithm.computing():
            *_, adapted = self.algorithm.adaptations(support, self.steps)

        def answer(x: Tensor) -> Tensor:
            with self.algorithm.computing():
                return adapted(x)

        return answer

    def _predictions(self, answer: Tensor) -> Predictions:
        nothing = answer.new_zeros(len(answer), 0).cpu()
        if not self.classes:
            return Predictions([], nothing, answer.cpu())
        probabilities = self._output(answer).cpu()
        return Predictions([self.classes[i] for i in probabilities.argmax(-1).tolist()], probabilities, nothing)

    def _score(self, answer: Tensor, y: Tensor) -> Tensor:
        """Return for each of N answers whether it is right, or its squared error."""
        if not self.classes:
            return (answer - y).square().flatten(1).mean(1)
        return (answer[:, : len(self.classes)].argmax(-1) == y).to(answer.dtype)


def state_like(algorithm: SupervisedAlgorithm) -> Tensor:
    """Return a floating-point tensor with the dtype and device of ``algorithm``, which may have no parameters."""
    tensors = chain(algorithm.parameters(), algorithm.buffers())
    return next((t for t in tensors if t.is_floating_point()), torch.zeros(()))


def fitting_way(algorithm: SupervisedAlgorithm, classes: int) -> int:
    """Return the ``way`` of ``algorithm`` for a task of ``classes`` classes; raises :class:`UserError` if there are
    too many.
    """
    if algorithm.accepts(EpisodeShape(classes, 1, 1)):
        return classes
    outputs = algorithm.spec.output_size
    if classes > outputs:
        raise UserError(fixed_head(classes, outputs, "the support set has {way} classes", most=True))
    return outputs
