"""The commands, each with its usage and what it does, in the order of ``metarun help``."""

from __future__ import annotations

COMMANDS = {
    "train": "meta-train, evaluate on held-out tasks (the default: `metarun key=value ...`)",
    "list": "list [tasks|models|algorithms|experiments]: all options, and which of them can be combined",
    "show": "show NAME [key=value ...]: an option, its keys and their defaults; with keys, what would run",
    "eval": "eval RUN [key=value ...]: evaluate a run's learner again, also under another protocol",
    "adapt": "adapt RUN --support PATH [--query PATH]: apply a run's learner to your own images, texts or numbers",
    "resume": "resume RUN [key=value ...]: continue a stopped run exactly",
    "search": "search SPACE [key=value ...]: tune hyperparameters by validation, and test the best ones",
    "reproduce": "reproduce ID [--seeds N]: run a paper's recipe and compare the result with the paper's",
    "report": "report DIR... [out=FOLDER]: compare runs: means over seeds, paired differences, curves, cost; one page",
    "bench": "bench [key=value ...]: time the outer step side by side with other installed libraries",
    "cache": "cache [clear [--older-than DAYS]]: list what is cached and when it was last used; clear deletes it",
    "doctor": "check the installation, devices and optional packages",
    "help": "help [TOPIC]: this overview, or a page of the manual",
}
