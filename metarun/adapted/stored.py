"""Adapted learners that ``metarun adapt`` saved, and algorithms rebuilt from a stored configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from metarun.adapted import tensors
from metarun.adapted.columns import Columns
from metarun.adapted.learner import FILE, AdaptedLearner
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.errors import UserError, require
from metarun.models.pretrained import encoder_stamp
from metarun.moved import updated
from metarun.tasks.episode import Labelled, Spec
from metarun.tasks.inputs import Inputs
from metarun.tasks.vision.images import Preparation
from metarun.training.checkpoint import misfit, read, take_vocabulary
from metarun.untrusted import plain

if TYPE_CHECKING:
    from metarun.config.trust import Trust

DTYPES = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float64, torch.bfloat16)}


def load(path: str | Path, trust: bool | Sequence[str] | Trust = False) -> AdaptedLearner:
    """Load a learner that ``metarun adapt`` saved. It predicts as it did then.

    The file is treated as data: only metarun's own classes are built.

    Args:
        path: The folder or file, of ``metarun adapt`` or of ``metarun export --to safetensors``.
        trust: Permission for other classes: ``True``, or import paths of your own modules or classes.

    Raises:
        UserError: There is no adapted learner, it is damaged, or it names code that is not permitted.
    """
    from metarun.config.check import check_section
    from metarun.config.environment import resolved
    from metarun.config.trust import Trust, admit

    file = located(path)
    kept = tensors.read(file) if file.name == tensors.FILE else read(file, torch.device("cpu"), str(file))
    require(kept.get("format") in (1, 2), f"{file}: not an adapted learner, or written by another version of metarun")
    sections: Any = kept.get("sections")
    require(plain(sections) and set(sections) == {"model", "algorithm"}, f"{file} is damaged: it has no sections")
    sections = updated(sections)
    admit(sections, str(file), Trust.of(trust))
    sections = resolved(sections)
    for section, values in sections.items():
        check_section(section, values)
    try:
        inputs = _inputs_of_format_1(kept) if kept["format"] == 1 else Inputs.from_dict(kept["inputs"], str(file))
        algorithm = rebuilt(sections, inputs.spec, kept["parameters"], str(file), DTYPES[kept["dtype"]])
        algorithm.load_state_dict(kept["parameters"])
        algorithm.precision = kept.get("precision", "float32")
        support = Labelled(*kept["support"])
        learner = AdaptedLearner(algorithm, inputs, support, kept["classes"], steps=kept["steps"], seed=kept["seed"])
        learner.temperature = float(kept.get("temperature", 1.0))
        learner.abstain = kept.get("abstain")
        learner.columns = Columns.from_dict(kept["columns"]) if kept.get("columns") else None
        about = kept.get("about", {})
        require(plain(about) and isinstance(about, dict), f"{file} is damaged: its facts are no plain values")
        learner.about = about
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged: its parts do not fit together ({reason})") from None
    stamp = kept.get("encoder")
    require(
        stamp is None or stamp == encoder_stamp(algorithm.model),
        f"{file}: the encoder's weights or preprocessing have changed since it was adapted; `metarun adapt` again",
    )
    return learner


def located(path: str | Path) -> Path:
    """Return the file of an adapted learner, which is in the folder ``path`` or is ``path``.

    Raises:
        UserError: There is none.
    """
    given = Path(path).expanduser()
    files = [given / FILE, given / tensors.FILE] if given.is_dir() else [given]
    found = next((file for file in files if file.is_file()), None)
    require(found is not None, f"{path}: holds no adapted learner ({FILE}); `metarun adapt` makes one")
    assert found is not None
    return found


def rebuilt(
    sections: Mapping[str, Any],
    spec: Spec,
    parameters: Mapping[str, Any],
    where: str,
    dtype: torch.dtype,
    objects: Mapping[str, Any] | None = None,
) -> SupervisedAlgorithm:
    """Build the algorithm and the model that ``sections`` describe, in the shapes of ``parameters``.

    No data are needed: the vocabulary of a text model is in ``parameters``.

    Args:
        sections: Configuration of ``model`` and ``algorithm``.
        spec: Description of the task family.
        parameters: Stored parameters of the algorithm.
        where: Name of their file, for messages.
        dtype: Type of the parameters.
        objects: Components that already exist, by section.

    Raises:
        UserError: The parameters do not fit.
    """
    from metarun.config.build import component

    model = component("model", sections, objects or {}, spec=spec, texts=[])
    take_vocabulary(model, parameters)
    algorithm = component("algorithm", sections, objects or {}, model=model, spec=spec)
    if reason := misfit(algorithm, parameters):
        raise UserError(f"{where}: {reason}")
    return algorithm.to(dtype)


def _inputs_of_format_1(kept: Mapping[str, Any]) -> Inputs:
    """Return the input conversion of old learners, from when all images were cropped and texts were stored."""
    spec = Spec(**{**kept["spec"], "input_shape": tuple(kept["spec"]["input_shape"])})
    if spec.modality != "image":
        return Inputs(spec)
    channels, height, width = spec.input_shape
    return Inputs(spec, Preparation(channels, height, width, ink="light" if kept["dark_paper"] else None))
