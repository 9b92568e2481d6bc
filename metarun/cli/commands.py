"""The commands, each declared once, in the order of ``metarun help``. Parser and help are made from this."""

from __future__ import annotations

from metarun.cli.arguments import Command, Key, Option, at_least, days, probability
from metarun.cli.options import CONFIG_DIR, JSON, TRUST, some
from metarun.export import FORMATS
from metarun.reports.status import STATUSES

SHELL_TASKS = ("install", "uninstall", "query")
SHELLS = ("bash", "zsh", "fish")
"""Shells with tab completion."""

_DECLARED = (
    Command(
        "train",
        "meta-train, evaluate on held-out tasks (the default: `metarun key=value ...`)",
        "[key=value ...] [options]",
        "Meta-train a learner, select the best checkpoint on validation tasks and test it on held-out tasks. The word "
        "train may be left out. task=, model=, algorithm= and experiment= choose options, which `metarun list` prints. "
        "Every other key changes a value: `metarun show NAME` prints the keys of an option. +key=value adds a key, "
        "~key deletes one.",
        (
            ("metarun task=vision/omniglot model=conv4 algorithm=maml seed=1", "one run"),
            ("metarun -m task=vision/glyphs algorithm=maml,protonet seed=0,1,2", "a sweep of six runs"),
        ),
        "configuration",
        (
            Option("--multirun", "run every combination: a,b,c  range(0,10)  glob(maml*)", short="-m"),
            CONFIG_DIR,
            Option("--cfg", "print the configuration and stop", "job|all", short="-c", choices=("job", "all")),
            Option("--resolve", "with --cfg: print the values of interpolations"),
            Option("--package", "with --cfg: print one key", "KEY", short="-p", read=some("a key, such as algorithm")),
            Option(
                "--info", "print how Hydra composes the configuration and stop", "WHAT", short="-i", implied="all",
                choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
            ),
            Option(
                "--shell-completion", "set up tab completion: eval \"$(metarun -sc install=bash)\"", "install=SHELL",
                short="-sc", choices=tuple(f"{task}={shell}" for task in SHELL_TASKS for shell in SHELLS),
            ),
        ),
        takes_names=False,
    ),
    Command(
        "list",
        "all options, and which of them can be combined",
        "[GROUP [PART]] [key=value ...]",
        "List the options. Without a group: the names of all. GROUP is tasks, models, algorithms or recipes (also "
        "called experiments), with a line for each, or combinations, the table of tasks and algorithms with the "
        "models that fit. PART is part of a name.",
        (
            ("metarun list algorithms task=vision/omniglot", "the algorithms that learn a task"),
            ("metarun list recipes status=passed", "the recipes whose record reaches the paper's numbers"),
        ),
        "configuration",
        (CONFIG_DIR, JSON),
        (
            Key("task", "options that can be combined with this task", "NAME", "all"),
            Key("model", "options that can be combined with this model", "NAME", "all"),
            Key("algorithm", "options that can be combined with this algorithm", "NAME", "all"),
            Key("kind", "options for this kind of task: classification, regression, control, ...", "KIND", "all"),
            Key("status", f"recipes with this status: {', '.join(STATUSES)}", "STATUS", "all", STATUSES),
        ),
        module="listing",
        prints=True,
    ),
    Command(
        "show",
        "an option, its keys and their defaults; with keys, what would run",
        "NAME [key=value ...]",
        "Describe an option: what it is, its class, its keys and their defaults. With keys, print the configuration "
        "that such a run would have, and where each value comes from. A name that two groups have is written "
        "group/name.",
        (
            ("metarun show maml", "an algorithm"),
            ("metarun show maml task=regression/sinusoid", "the values of a run"),
        ),
        "configuration",
        (CONFIG_DIR, JSON),
        prints=True,
    ),
    Command(
        "check",
        "try whether a task, a model and an algorithm, your own ones too, do what they promise",
        "key=value ... [options]",
        "Try what a task, a model and an algorithm promise each other: that tasks repeat and have the declared sizes, "
        "that outer steps learn, that a stopped run goes on to the bit, and more. What does not hold is printed with "
        "the reason, and the exit status is then 1. It runs on the CPU, on meta-batches of two tasks.",
        (("metarun --config-dir my_conf check task=lines", "a task family of your own"),),
        "extending",
        (CONFIG_DIR, JSON),
        takes_names=False,
        prints=True,
    ),
    Command(
        "eval",
        "evaluate a run's learner again, also under another protocol",
        "RUN [key=value ...] [options]",
        "Evaluate the learner of a run. Keys of task, algorithm and runner change the protocol. The result is printed "
        "and written to RUN/evaluations/<time>.json; the run itself stays as it is.",
        (
            ("metarun eval RUN", "the run's own protocol"),
            ("metarun eval RUN task.shot=5 runner.test_episodes=1000", "another one"),
            ("metarun eval RUN task=vision/omniglot", "another family of tasks"),
        ),
        "evaluation",
        (
            Option("--val", "evaluate on the validation split instead of the test split"),
            Option("--new-classes", "evaluate on the classes of the data that the run does not know"),
            Option("--allow-seen-classes", "evaluate also on classes that the run meta-trained on"),
            TRUST, CONFIG_DIR, JSON,
        ),
        module="evaluate",
    ),
    Command(
        "adapt",
        "apply a run's learner to your own images, texts, numbers or tables",
        "[RUN] --support PATH [--query PATH] [key=value ...] [options]",
        "Adapt the learner of a run to your own examples and predict the queries. Without a run, a pretrained encoder "
        "of images or texts is used, if one is installed. It writes predictions.csv, sheet.png, confusion.png, "
        "result.json and learner.pt, and prints the leave-one-out score of the examples.",
        (
            ("metarun adapt --support photos/known", "without a run: nearest prototypes of a pretrained encoder"),
            ("metarun adapt RUN --support known.csv --query new.csv --steps 20", "texts or numbers"),
            ("metarun adapt RUN --support my.csv --query new.csv --target price_class", "a table"),
        ),
        "data",
        (
            Option("--support", "examples: a folder with a folder of images for each class, a CSV file of "
                   "text,label or of numbers, or a parquet file of any of them", "PATH", "required"),
            Option("--query", "inputs to predict: images, or a CSV or parquet file; those with known answers are "
                   "scored", "PATH", "none"),
            Option("--target", "the column to predict: of a table, or the labels of texts and of images in parquet",
                   "COLUMN", "none"),
            Option("--labelled", "the queries' folders, or their label column, are their classes, all of which are in "
                   "the support set", default="if they look so"),
            Option("--unlabelled", "only predict, whatever folders and columns are called"),
            Option("--abstain", "name no class if its probability is below P; print what that leaves", "P", "none",
                   read=probability),
            Option("--steps", "adaptation steps", "N", "those of the run's test", read=at_least(0)),
            Option("--out", "output folder", "DIR", "RUN/adapted/<time>"),
            TRUST, CONFIG_DIR,
        ),
    ),
    Command(
        "predict",
        "predict new inputs by a learner that adapt saved",
        "LEARNER --query PATH [options]",
        "Predict images, texts, numbers or tables by a learner that `adapt` saved. Neither the run nor its data are "
        "needed. Folders of any number of images are read while they are predicted. The result is a CSV file with a "
        "row for each input.",
        (
            ("metarun predict ADAPTED --query photos/new", "a folder of images"),
            ("metarun predict ADAPTED --query photos/new --abstain .6 --out found.csv", "no class if in doubt"),
        ),
        "deploy",
        (
            Option("--query", "inputs: an image, a folder of images at any depth, a CSV, JSONL or parquet file, or a "
                   ".txt file with a text on each line", "PATH", "required"),
            Option("--abstain", "name no class if its probability is below P", "P", "the learner's own",
                   read=probability),
            Option("--out", "CSV file", "FILE", "predicted_<time>.csv beside the learner"),
            TRUST, CONFIG_DIR,
        ),
    ),
    Command(
        "serve",
        "a local web page that classifies what is dropped on it",
        "LEARNER [options]",
        "Serve a web page for a learner that `adapt` saved: images or tables are dropped on it, texts are typed. It "
        "can be reached from this machine only, unless --host says otherwise.",
        (
            ("metarun serve ADAPTED", "the page at http://127.0.0.1:8765/"),
            ("metarun serve ADAPTED --port 9000 --abstain .6", "another port; no class if in doubt"),
        ),
        "deploy",
        (
            Option("--port", "port; 0 for any free one", "N", "8765", read=at_least(0)),
            Option("--host", "address to listen at", "ADDRESS", "127.0.0.1", read=some("an address")),
            Option("--limit", "largest upload that is read, in MB", "MB", "20", read=at_least(1)),
            Option("--abstain", "name no class if its probability is below P", "P", "the learner's own",
                   read=probability),
            TRUST, CONFIG_DIR,
        ),
    ),
    Command(
        "export",
        "write what was learned for use outside of metarun",
        "SOURCE --to FORMAT [options]",
        "Write what was learned in a format that other programs read. A learner is one that `adapt` saved; its files "
        "are read again, and the largest difference of their predictions for random queries is printed. Formats: "
        + "; ".join(f"{name}, {each.help}" for name, each in FORMATS.items()) + ".",
        (
            ("metarun export ADAPTED --to onnx", "a learner that adapt saved, for ONNX Runtime"),
            ("metarun export RUN --to optimizer --out shipped", "the update rule of a learned optimizer"),
        ),
        "deploy",
        (
            Option("--to", "format", "FORMAT", "required", choices=tuple(FORMATS)),
            Option("--queries", "number of random queries that check a learner's files", "N", "100", read=at_least(1)),
            Option("--out", "output folder", "DIR", "a folder named as the format, beside the source"),
            TRUST, CONFIG_DIR,
        ),
    ),
    Command(
        "collect",
        "store the learning histories of RL learners, for algorithm=ad",
        "key=value ... --out DIR [options]",
        "Train an RL learner of its own on each of many tasks, and write every step that it took from the first to the "
        "last. algorithm=ad learns from the folder. The same command again continues.",
        (
            (
                "metarun collect task=rl/darkroom algorithm=pretrain_trpo model=mlp_policy --out histories",
                "TRPO on 100 dark rooms",
            ),
            ("metarun collect task=rl/bandit algorithm=rl2 --tasks 10 --out histories", "RL2 on 10 bandits"),
        ),
        "algorithms",
        (
            Option("--tasks", "number of tasks, the first ones of the meta-training split", "N", "100",
                   read=at_least(1)),
            Option("--out", "folder of the histories, a file for each task", "DIR", "required"),
            CONFIG_DIR,
        ),
        takes_names=False,
    ),
    Command(
        "resume",
        "continue a stopped run exactly",
        "RUN [key=value ...] [options]",
        "Continue a stopped run from its last checkpoint; the result is that of a run without a stop, to the bit. A "
        "finished run trains longer with a higher runner.iterations. Keys of runner and tracker may change.",
        (
            ("metarun resume RUN", "continue"),
            ("metarun resume RUN runner.iterations=60000", "train longer"),
        ),
        "exactness",
        (TRUST, CONFIG_DIR),
    ),
    Command(
        "search",
        "tune hyperparameters by validation, and test the best ones",
        "SPACE [key=value ...] [options]",
        "Tune the keys of a search space on validation tasks, and test the best trial. The same command again "
        "continues a stopped search.",
        (
            ("metarun search rates task=regression/sinusoid", "the trials that the space names"),
            ("metarun search rates task=regression/sinusoid --trials 40 --workers 2", "more, two at a time"),
        ),
        "sweeps",
        (
            Option("--trials", "number of trials", "N", "the space's own", read=at_least(1)),
            Option("--workers", "trials at a time, each in its own process and, if there are several, on its own GPU",
                   "N", "the number of GPUs, at least 1", read=at_least(1)),
            Option("--worker", "number of this worker", "N", read=at_least(0), hidden=True),
            CONFIG_DIR,
        ),
    ),
    Command(
        "reproduce",
        "run a paper's recipe and compare the result with the paper's",
        "ID [key=value ...] [options]",
        "Run a recipe for seeds 0 to N - 1 and compare the result with the paper's. Finished runs are reused, stopped "
        "ones resumed. The record is written to outputs/reproduced. Only keys that leave the result as it is may "
        "change, such as runner.device.",
        (
            ("metarun reproduce maml/sinusoid", "three seeds, one after another"),
            ("metarun reproduce maml/sinusoid --seeds 5 --jobs 2", "five, two at a time"),
        ),
        "reproducing",
        (
            Option("--seeds", "number of seeds", "N", "3", read=at_least(1)),
            Option("--jobs", "runs at a time, each in its own process and, if there are several, on its own GPU", "N",
                   "the number of GPUs, at least 1", read=at_least(1)),
            Option("--smoke", "only try the recipe: two iterations in a temporary directory, nothing recorded"),
            TRUST, CONFIG_DIR,
        ),
    ),
    Command(
        "report",
        "compare runs: means over seeds, paired differences, curves, cost; one page",
        "DIR... [out=FOLDER]",
        "Compare finished runs: means over seeds with 95 % intervals, paired differences on the same test tasks, "
        "curves and cost. DIR is a run directory, a folder with run directories, or the folder of a sweep.",
        (
            ("metarun report outputs/glyphs-maml outputs/glyphs-protonet", "tables in the terminal"),
            ("metarun report outputs out=page", "a web page, tables and pictures as files"),
        ),
        "reports",
        (JSON,),
        (Key("out", "folder for report.{html,md,tex,csv}, pairs.csv and the pictures", "FOLDER", "the terminal"),),
        prints=True,
    ),
    Command(
        "bench",
        "time the outer step side by side with other installed libraries",
        "[key=value ...]",
        "Time the outer step of fixed workloads, side by side with other installed libraries. The result is printed "
        "and written, with all samples, to <out>/<time>.json and .png.",
        (
            ("metarun bench", "all workloads"),
            ("metarun bench workloads=W1,W3 rounds=10", "two of them, longer"),
        ),
        "performance",
        keys_file="bench/default.yaml",
        takes_names=False,
    ),
    Command(
        "cache",
        "list what is cached and when it was last used; clear deletes it",
        "[clear] [options]",
        "List the downloads and decoded data in the cache with their sizes and when they were last used. With clear, "
        "delete them; everything is downloaded or built again when needed.",
        (
            ("metarun cache", "what is there"),
            ("metarun cache clear --older-than 30", "delete what was not used for a month"),
        ),
        "data",
        (Option("--older-than", "with clear: only what was not used for so many days", "DAYS", "0", read=days),),
    ),
    Command(
        "doctor",
        "check the installation, devices and optional packages",
        "[options]",
        "Check the installation: Python, packages, devices, data folder, cache, optional packages. The exit status is "
        "1 if something that every run needs is broken.",
        (
            ("metarun doctor", "a line for each finding"),
            ("metarun doctor --json", "for a bug report or a script"),
        ),
        "troubleshooting",
        (JSON,),
        prints=True,
    ),
    Command(
        "help",
        "this overview, the help of a command, or a page of the manual",
        "[COMMAND|TOPIC]",
        "Print an overview of commands and topics, the help of a command, or a page of the manual.",
        (
            ("metarun help getting-started", "a page of the manual"),
            ("metarun help eval", "a command"),
        ),
        "getting-started",
        prints=True,
    ),
)  # fmt: skip
COMMANDS = {command.name: command for command in _DECLARED}
