"""Run directories as runs leave them, with results of the test's choosing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metarun.tracking.rundir import RunDirectory

TASKS = {
    "regression/sinusoid": ("metarun.tasks.regression.sinusoid.Sinusoid", "mse", False),
    "vision/glyphs": ("metarun.tasks.vision.glyphs.Glyphs", "accuracy", True),
}


def made(
    root: Path,
    curves: Any,
    *,
    task: str = "regression/sinusoid",
    algorithm: str = "maml",
    seed: int = 0,
    shot: int = 5,
    norm: str = "support",
    others: dict[str, Any] | None = None,
    state: str = "finished",
    why: str = "",
    start: str = "2026-01-01T00:00:00+00:00",
    group: str | None = None,
    keys: Sequence[tuple[str, str, Any]] = (),
) -> Path:
    """A run whose test results are ``curves`` [n, k + 1], those under further shapes ``others``.

    ``keys`` are (section, key, value) of its configuration.
    """
    target, metric, higher = TASKS[task]
    path = root / f"{task.split('/')[1]}-{algorithm}" / f"{len(list(root.glob('*/*_s*'))):04}_s{seed}"
    directory = RunDirectory(path)
    path.mkdir(parents=True)
    config = {
        "task": {"_target_": target, "shot": shot},
        "model": {"_target_": "metarun.models.mlp.MLP", "hidden": [40, 40]},
        "algorithm": {"_target_": f"some.{algorithm}", f"only_{algorithm}": 1, "inner_lr": 0.01, "norm": norm},
        "runner": {"iterations": 20, "meta_batch": 4, "directory": str(root)},
        "tracker": {"wandb": "disabled"},
        "seed": seed,
        "paper": None,
    }
    for section, key, value in keys:
        config[section][key] = value  # type: ignore[index]
    directory.write_config(config)
    choices = {"task": task, "algorithm": algorithm, "model": "mlp"}
    directory.write_meta(choices=choices, device="cpu", start=start, group=group, git={"commit": "a" * 40})
    directory.write_status(state, why)  # type: ignore[arg-type]
    samples = {metric: np.asarray(curves, dtype=np.float64), **(others or {})}
    final = samples[metric][:, -1]
    rows = [
        {"iteration": i, f"val/{metric}": float(final.mean() + 0.1 * (20 - i)), f"val/{metric}_ci95": 0.05}
        for i in (10, 20)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if state != "finished":
        return path
    directory.write_episodes(samples)
    directory.write_summary(
        {
            "iterations": 20,
            "seed": seed,
            "wall_s": 61.0 + seed,
            "test": {name: estimate(values[:, -1]) for name, values in samples.items()},
            "references": {},
            "metric": metric,
            "higher_is_better": higher,
            "protocol": {"data": task, "shot": shot, "norm": norm, "test_episodes": len(final), "selection": "last"},
            "protocol_of_learner": ["norm"],
            "adaptation": [{"step": i, **estimate(column)} for i, column in enumerate(samples[metric].T)],
            "parameters": 1761,
            "peak_mb": 300.0 + seed,
            "validated": [{"iteration": 10, "seconds": 30.0}, {"iteration": 20, "seconds": 60.0}],
        }
    )
    return path


def estimate(values: Any) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "ci95": float(1.96 * values.std(ddof=1) / len(values) ** 0.5),
        "n": len(values),
    }


def again(path: Path, to: Path) -> Path:
    return Path(shutil.copytree(path, to))


def edited(path: Path, **values: Any) -> None:
    """Change entries of a run's summary; ``None`` removes one."""
    file = path / "summary.json"
    summary = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({k: v for k, v in summary.items() if v is not None}))


def configured(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((path / "config.yaml").read_text()))
