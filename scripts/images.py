"""How long a data set of mini-ImageNet's size takes to decode, to load again, and to draw meta-batches from.

    python scripts/images.py
    python scripts/images.py --images 60000 --steps 5 --json images.json

Makes 100 classes of JPEG files, 84 pixels wide and high, named as mini-ImageNet's, in a temporary folder (smooth random
colours with noise: about as many bytes as photographs), and reads them by task=vision/mini_imagenet: once with an empty
cache, once from the cache. The files lie in the system's file cache then, as they do after a download. Drawing a
meta-batch and a step of Conv-4 on it are timed in turns, and their medians are compared. Last, some files are damaged
and some removed: what the run says is printed, and that it does so before any step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metarun.config.build import build
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.tasks.files import cpus
from metarun.tasks.vision.mini_imagenet import MiniImageNet
from metarun.tasks.vision.published import class_list
from metarun.training.experiment import Experiment

SIZE = 84
LEARNERS = {
    "protonet": ["algorithm=protonet"],
    "maml": ["algorithm=maml", "model.width=32", "runner.meta_batch=4"],
}
AUGMENTED = ["task.crop=8", "task.flip=true", "task.jitter=0.4"]
COMMON = ["task=vision/mini_imagenet", "model=conv4", "name=images", "tracker.wandb=disabled", "runner.device=cpu"]


def write_class(root: Path, each: int, wnid: str) -> int:
    """The files of one class; how many bytes they are."""
    noise = np.random.default_rng(int(wnid[1:]))
    total = 0
    for i in range(each):
        coarse = Image.fromarray(noise.integers(0, 256, (10, 10, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(np.int16)
        fine = fine + noise.integers(-12, 13, fine.shape, dtype=np.int16)
        out = BytesIO()
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(out, "jpeg", quality=90)
        (root / f"{wnid}{i + 1:08}.jpg").write_bytes(out.getvalue())
        total += len(out.getvalue())
    return total


def experiment(root: Path, words: Sequence[str] = ()) -> Experiment:
    return build(compose([*COMMON, f"task.root={root}", *words]).config)


def timed_build(root: Path, words: Sequence[str]) -> tuple[Experiment, float]:
    began = time.perf_counter()
    run = experiment(root, words)
    return run, time.perf_counter() - began


def steps(run: Experiment, count: int) -> dict[str, float]:
    """Median seconds of drawing a meta-batch and of a step on it, in turns; the first step is not counted."""
    size, drawn, stepped = run.runner.meta_batch, [], []
    for i in range(count + 1):
        began = time.perf_counter()
        shape = run.algorithm.train_shape(run.task.shape)
        batch = run.task.batch("train", range(i * size, (i + 1) * size), shape)
        middle = time.perf_counter()
        float(next(iter(run.engine.meta_step(batch, i).values())))
        drawn.append(middle - began)
        stepped.append(time.perf_counter() - middle)
    draw, step = statistics.median(drawn[1:]), statistics.median(stepped[1:])
    return {"draw_s": draw, "step_s": step, "draw_percent_of_step": 100 * draw / step}


def refusal(root: Path, words: Sequence[str]) -> str:
    try:
        experiment(root, words)
    except UserError as error:
        return str(error)
    raise SystemExit("images: a damaged data set was taken")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=100 * MiniImageNet.num_images_per_class, help="in all, of 100 classes"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed for each learner")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    asked = parser.parse_args()
    words = [] if asked.images == 100 * MiniImageNet.num_images_per_class else ["task.whole=false"]
    figures: dict[str, Any] = {"images": asked.images, "processors": cpus()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "images")
        root.mkdir()
        os.environ["METARUN_CACHE"] = str(Path(folder, "cache"))
        with ProcessPoolExecutor() as pool:
            wnids = list(class_list("mini_imagenet"))
            sizes = list(pool.map(partial(write_class, root, asked.images // 100), wnids))
        figures["bytes_an_image"] = sum(sizes) / asked.images
        print(f"{asked.images} JPEG files of {SIZE}x{SIZE}, {sum(sizes) / asked.images:.0f} bytes each", flush=True)

        _, figures["decode_s"] = timed_build(root, words)
        _, figures["reload_s"] = timed_build(root, words)
        print(f"decoded and cached in {figures['decode_s']:.1f} s on {cpus()} processors", flush=True)
        print(f"loaded from the cache, checksums verified, in {figures['reload_s']:.2f} s", flush=True)
        for name, learner in LEARNERS.items():
            for augmented in (False, True):
                run = experiment(root, [*words, *learner, *(AUGMENTED if augmented else [])])
                found = steps(run, asked.steps)
                figures[f"{name}{' augmented' if augmented else ''}"] = found
                print(
                    f"{name}{', augmented' if augmented else ''}: a meta-batch is drawn in {1e3 * found['draw_s']:.1f} "
                    f"ms, {found['draw_percent_of_step']:.2f} % of a step of {1e3 * found['step_s']:.0f} ms",
                    flush=True,
                )

        files = sorted(root.iterdir())
        for file in files[:: len(files) // 7]:
            file.write_bytes(file.read_bytes()[:500])
        figures["damaged"] = refusal(root, words)
        print(f"8 files cut short: {figures['damaged']}")
        if not words:
            for file in files[1 :: len(files) // 3]:
                file.unlink()
            figures["missing"] = refusal(root, words)
            print(f"3 files removed: {figures['missing']}")
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
