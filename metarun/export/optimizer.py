"""The format ``optimizer``: the update rule of a run, as a torch optimizer that ``metarun.load_optimizer`` loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from metarun.adapted.optimizer_file import save_optimizer
from metarun.errors import require
from metarun.export import Request
from metarun.runs.stored import reread, tested_checkpoint
from metarun.tracking.files import make_output_folder
from metarun.training import checkpoint

FILE = "optimizer.pt"
_PREFIX = "rule."


def export(request: Request) -> Iterator[str]:
    """Write ``optimizer.pt`` from the checkpoint that the run tests, and yield lines to print.

    Raises:
        UserError: The run has no learned update rule that fits any parameters, or the folder cannot be made.
    """
    directory, config, _, _ = reread("export", [request.source], allowed=(), trust=request.trust)
    algorithm = config["algorithm"]
    rule = algorithm.get("rule")
    require(isinstance(rule, dict), f"{directory.path}: its algorithm has no update rule; algorithm=l2l, for one, has")
    state = checkpoint.load(tested_checkpoint(directory, config["runner"]["select"]), torch.device("cpu"))
    parameters = state["algorithm"]["parameters"]
    learned = {name.removeprefix(_PREFIX): value for name, value in parameters.items() if name.startswith(_PREFIX)}
    folder = Path(request.out).expanduser() if request.out else directory.path / "optimizer"
    make_output_folder(folder)
    path = folder / FILE
    save_optimizer(path, rule, algorithm["inner_lr"], algorithm["inner_steps"], learned)
    yield f"wrote      {path} ({checkpoint.iteration(state)} iterations of meta-training)"
    yield f"use        optimizer = metarun.load_optimizer({str(path)!r})(model.parameters())"
