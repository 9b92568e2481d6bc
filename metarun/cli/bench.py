"""``metarun bench [key=value ...]``: time the outer step side by side with other libraries, and a run end to end."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from metarun import strict_json, style
from metarun.cli.arguments import Arguments
from metarun.cli.output import plain_console
from metarun.config.check import check_value
from metarun.config.overrides import read as read_words
from metarun.config.overrides import read_single
from metarun.config.paths import conf_directory
from metarun.config.schema import declaration
from metarun.errors import UserError, nearest, require

if TYPE_CHECKING:
    from metarun.bench.implementations import Implementation
    from metarun.bench.settings import Settings

log = logging.getLogger("metarun")

END_TO_END = "end_to_end"
ROLLOUTS = "rollouts"
TABLES = "tables"
RUNS = "runs"
LISTS = ("workloads", "peers")
"""Keys whose values are lists and may be written without brackets: ``workloads=W1,W2``."""


def run(arguments: Arguments) -> int:
    """Run the command. Results go to stdout and, with all samples, to ``<out>/<time>.json`` and ``.png``."""
    settings = read(arguments.overrides)
    # Imported here because they import torch.
    from metarun.bench.compare import compare, measure_memory, rows_for
    from metarun.bench.end_to_end import end_to_end
    from metarun.bench.machine import limit_threads
    from metarun.bench.report import as_json, legend, picture, table
    from metarun.bench.workloads import WORKLOADS
    from metarun.tracking.files import atomic_write
    from metarun.tracking.provenance import provenance
    from metarun.tracking.rundir import now
    from metarun.training.device import choose_device

    names = chosen_workloads(settings.workloads, WORKLOADS)
    peers = chosen_peers(settings.peers)
    device = choose_device(settings.device, "device")
    path = _result_file(settings.out)
    workloads = {name: WORKLOADS[name].with_tasks(settings.meta_batch) for name in names if name in WORKLOADS}
    result: dict[str, Any] = {
        "start": now(),
        **provenance(),
        "settings": dataclasses.asdict(settings),
        "device": str(device),
        "load": os.getloadavg(),
        "peers": {peer.name: _version(peer.package) for peer in peers if peer.package},
    }
    if result["load"][0] > 0.5:
        log.warning(
            "this machine is busy (load %.1f): times will scatter, those of small steps most", result["load"][0]
        )
    console, measured = plain_console(), {}
    with limit_threads(settings.threads, bind=any(peer.package == "jax" for peer in peers)):
        for name, workload in workloads.items():
            measured[name] = rows = rows_for(workload, peers)
            compare(workload, rows, device, settings.rounds)
            if settings.memory:
                measure_memory(workload, rows, device, settings.threads)
            console.print(table(workload, rows))
        if END_TO_END in names:
            whole = end_to_end(settings.iterations, settings.threads, device, settings.meta_batch)
            console.print(
                f"end to end   {whole.iterations} iterations of MAML on {whole.task}: {whole.seconds:.1f} s, of them "
                f"{whole.outside:.2f} s or {100 * whole.share:.2f} % outside the outer steps"
            )
            result[END_TO_END] = {**dataclasses.asdict(whole), "share": whole.share}
        if ROLLOUTS in names:
            from metarun.bench.rollouts import rollouts, rollouts_table

            speeds = rollouts(settings.rounds, settings.threads)
            console.print(rollouts_table(speeds))
            result[ROLLOUTS] = [speed.as_dict() for speed in speeds]
        if TABLES in names:
            from metarun.bench.tables import tables, tables_table

            speeds = tables(settings.rounds, device)
            console.print(tables_table(speeds))
            result[TABLES] = [speed.as_dict() for speed in speeds]
    if RUNS in names:  # with the threads that each run chooses
        from metarun.bench import runs

        times = runs.time_runs(device)
        console.print(runs.runs_table(times))
        result[RUNS] = runs.as_json(times)
    result["workloads"] = as_json(workloads, measured)
    atomic_write(path, strict_json.dumps(result, indent=1).encode())
    if measured:
        console.print(legend(measured))
        with style.applied():
            figure = picture(measured)
            style.entitle(figure, f"bench {path.stem}", f"{settings.rounds} rounds, {settings.threads} threads")
            style.save(figure, path.with_suffix(".png"))
    console.print(f"results    {path}")
    return 0


def read(words: Sequence[str]) -> Settings:
    """Return the settings: conf/bench/default.yaml with the command line's keys, checked."""
    from metarun.bench.settings import Settings

    values: dict[str, Any] = yaml.safe_load((conf_directory() / "bench" / "default.yaml").read_text())
    declared = declaration("metarun.bench.settings.Settings").parameters
    for override in read_words(words):
        key = override.key
        require(key in values, f"unknown key '{key}'{nearest(key, values)}   allowed: {', '.join(values)}")
        require(not override.sign, f"{override.word}: leave out the {override.sign} sign")
        if key in LISTS and not isinstance(override.value, list | None):  # without the brackets
            values[key] = [each.value for each in override.expanded() if each.value != ""]
        else:
            values[key] = read_single([override.word])[0].value
    for key, value in values.items():
        check_value(key, value, declared[key])
    return Settings(**values)


def chosen_workloads(asked: Iterable[str], known: Iterable[str]) -> list[str]:
    """The workloads of the given names, ``W5`` standing for all that begin with ``W5-``, each once."""
    every = [*known, END_TO_END, ROLLOUTS, TABLES, RUNS]
    chosen: list[str] = []
    for name in asked:
        found = [k for k in every if k == name or k.startswith(f"{name}-")]
        require(bool(found), f"workloads: unknown workload '{name}'{nearest(name, every)}   known: {', '.join(every)}")
        chosen += [k for k in found if k not in chosen]
    require(bool(chosen), f"workloads: name at least one of {', '.join(every)}")
    return chosen


def chosen_peers(asked: Sequence[str] | None) -> list[Implementation]:
    """The peers of the given names beside the base, which always takes part; those installed where ``None``."""
    from metarun.bench.peers import BASE, PEERS, installed

    others = {name: peer for name, peer in PEERS.items() if peer is not BASE}
    if asked is None:
        return [peer for peer in others.values() if installed(peer)]
    for name in asked:
        require(name in PEERS, f"peers: unknown peer '{name}'{nearest(name, PEERS)}   known: {', '.join(PEERS)}")
        require(installed(PEERS[name]), f"peers: {name} is not installed here; scripts/peers installs the peers")
    return [peer for name, peer in others.items() if name in asked]


def _result_file(out: str) -> Path:
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot make this folder: {error.strerror}") from None
    return Path(out) / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}.json"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
