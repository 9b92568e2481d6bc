"""Parts that the formats of learners share: the whole computation as a module, and the check of written files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.stored import load, located
from metarun.errors import RunFailed
from metarun.export import Request
from metarun.export.card import FILE, model_card
from metarun.models.encoder import Encoder
from metarun.tracking.files import atomic_write, make_output_folder

log = logging.getLogger("metarun")

BATCH_SIZE = 50
TOLERANCE = 1e-4
"""Largest accepted difference of a probability or a logit, and of a value relative to the largest one."""
LONGEST = 24
"""Largest number of tokens of a random text."""

Compute = Callable[..., Tensor]
"""The exported computation: the inputs of :class:`Whole` -> predictions [N, outputs]."""


class Whole(nn.Module):
    """A learner's whole computation from prepared inputs to predictions, with its frozen encoder if it has one.

    Maps inputs [N, ...] to probabilities [N, classes], or to values [N, outputs] in regression. For texts that an
    encoder reads, the inputs are ``input_ids`` and ``attention_mask``, [N, L] each, as its tokenizer gives them.

    Args:
        learner: The adapted learner.
    """

    def __init__(self, learner: AdaptedLearner) -> None:
        super().__init__()
        self.learner, self.algorithm, self.embedder = learner, learner.algorithm, learner.embedder
        self.reads_tokens = isinstance(learner.algorithm.model, Encoder)
        self.names = ["input_ids", "attention_mask"] if self.reads_tokens else ["x"]
        self.longest: int = getattr(learner.algorithm.model, "max_tokens", 0)  # tokens of a text
        self.result = "probabilities" if learner.classes else "values"
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = torch.where(mask > 0, x + 1, 0)
        return self.learner.output(x if self.embedder is None else self.embedder(x))


def export_learner(
    request: Request, name: str, write: Callable[[Whole, Path], tuple[list[Path], Compute]]
) -> Iterator[str]:
    """Export a learner, compare the files with it on random queries, and yield lines to print.

    Args:
        request: The command line.
        name: Name of the format.
        write: Function that writes the files to a folder. It returns their paths, and the computation read from them.

    Raises:
        UserError: There is no learner, or the folder cannot be made.
        RunFailed: The predictions differ by more than :func:`accepted`. The files are deleted.
    """
    learner = load(request.source, request.trust)
    folder = Path(request.out).expanduser() if request.out else located(request.source).parent / name
    make_output_folder(folder)
    whole = Whole(learner)
    log.info("writing %s; a large encoder takes minutes", name)
    files, compute = write(whole, folder)
    for file in files:
        yield f"wrote      {file} ({file.stat().st_size / 1e6:.1f} MB)"
    difference, scale = largest_difference(whole, compute, random_inputs(whole, request.queries))
    what = "probabilities" if learner.classes else f"values up to {scale:.3g}"
    checked = f"{request.queries} random queries, largest difference {difference:.2g} ({what})"
    yield f"checked    {checked}"
    if not difference <= accepted(learner, scale):
        for file in files:
            file.unlink()
        raise RunFailed(
            f"{folder}: the predictions differ from the learner's by {difference:.2g}, and the files were deleted"
            + ("" if name == "safetensors" else "; --to safetensors works")
        )
    card = folder / FILE
    atomic_write(card, model_card(learner, f"As {name}, checked on {checked}").encode())
    yield f"wrote      {card}"


def accepted(learner: AdaptedLearner, scale: float) -> float:
    """Return the largest accepted difference of predictions up to ``scale``.

    A low temperature multiplies the rounding of logits: a difference of d in each changes the probabilities of their
    softmax at temperature T by at most d / (2 T).
    """
    return TOLERANCE * (max(1.0, 0.5 / learner.temperature) if learner.classes else max(1.0, scale))


@torch.no_grad()
def largest_difference(whole: Whole, compute: Compute, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Return the largest difference of the predictions of ``compute``, and the largest prediction.

    The first query is predicted alone, the others in batches.
    """
    largest, scale = 0.0, 0.0
    sizes = [1, *(len(part) for part in inputs[0][1:].split(BATCH_SIZE))]
    for batch in zip(*(part.split(sizes) for part in inputs), strict=True):
        expected, found = whole(*batch), compute(*batch)
        largest = max(largest, float((expected - found).abs().nan_to_num(float("inf")).max()))
        scale = max(scale, float(expected.abs().max()))
    return largest, scale


def random_inputs(whole: Whole, count: int) -> tuple[Tensor, ...]:
    """Return random inputs of a learner, drawn with a fixed seed: ``count`` of each of ``whole.names``.

    Images for a frozen encoder are smooth noise, and texts for an encoder are random tokens. Other inputs lie between
    two support examples, or have the beginning of one and the end of another if they consist of ids.
    """
    random = torch.Generator().manual_seed(0)
    learner = whole.learner
    if whole.reads_tokens:
        encoder: Any = learner.algorithm.model
        longest = min(LONGEST, whole.longest)
        ids = torch.randint(len(encoder.tokenizer), (count, longest), generator=random)
        lengths = torch.randint(2, longest + 1, (count, 1), generator=random)
        mask = (torch.arange(longest) < lengths).long()
        return ids * mask, mask
    if learner.embedder is not None:
        channels, *size = learner.inputs.spec.input_shape
        coarse = torch.rand(count, channels, 6, 6, generator=random)
        return ((255 * F.interpolate(coarse, size, mode="bicubic").clamp(0, 1)).to(torch.uint8),)
    support = learner.support.x[0].cpu()
    one, other = (support[torch.randint(len(support), (count,), generator=random)] for _ in range(2))
    if support.is_floating_point() or support.dtype == torch.uint8:
        share = torch.rand(count, *[1] * (support.dim() - 1), generator=random)
        return (one.lerp(other, share) if support.is_floating_point() else
                (one * (1 - share) + other * share).to(torch.uint8),)  # fmt: skip
    middle = support.shape[-1] // 2
    return (torch.cat([one[..., :middle], other[..., middle:]], -1),)
