"""Tab completion: ``metarun -sc install=SHELL`` prints a script, which calls ``metarun -sc query=SHELL``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from metarun.cli.arguments import COMMON, Command
from metarun.cli.commands import COMMANDS
from metarun.cli.help import keys_in, topics
from metarun.config.paths import is_group, options, use_config_dir
from metarun.errors import UserError

OFFERED_FIRST = ("task=", "model=", "algorithm=", "experiment=")
"""Keys that are offered before anything is typed."""
CHANGES = {"eval": ("task", "algorithm", "runner"), "adapt": ("task", "algorithm", "runner"),
           "resume": ("runner", "tracker")}  # fmt: skip
"""Sections of a run that a command can change."""
DEEPEST = 4
"""Levels of folders in which runs are looked for."""
MOST_FOLDERS = 2000
"""Number of folders after which the search for runs ends."""

INSTALL = {
    "bash": r"""_metarun() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n' word before= found
    word=${line##* }
    found=($(COMP_LINE=$line "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null))
    [[ $word == *[=:]* ]] && before=${word%"${word##*[=:]}"}
    COMPREPLY=("${found[@]#"$before"}")
    [[ ${#found[@]} -eq 1 && ${found[0]} == *[=./] ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _metarun metarun""",
    "zsh": r"""(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_metarun() {
    local -a found open
    found=(${(f)"$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" ${words[1]} -sc query=zsh 2>/dev/null)"})
    open=(${(M)found:#*[=./]})
    found=(${found:#*[=./]})
    (( $#open )) && compadd -S '' -- $open
    (( $#found )) && compadd -- $found
    (( $#open + $#found )) || { compset -P '*='; _files }
}
compdef _metarun metarun""",
    "fish": r"""function __metarun_complete
    set -l found (env COMP_LINE=(commandline -cp | string collect) (commandline -opc)[1] -sc query=fish 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c metarun -f -a '(__metarun_complete)'""",
}
UNINSTALL = {
    "bash": "complete -r metarun; unset -f _metarun",
    "zsh": "compdef -d metarun; unfunction _metarun",
    "fish": "complete -c metarun -e; functions -e __metarun_complete",
}


def complete(task: str) -> int:
    """Print the script of a shell, or what may follow the line in ``COMP_LINE``, one candidate a line.

    Args:
        task: ``install=SHELL``, ``uninstall=SHELL`` or ``query=SHELL``.
    """
    what, _, shell = task.partition("=")
    if what != "query":
        print((INSTALL if what == "install" else UNINSTALL)[shell])
        return 0
    line = os.environ.get("COMP_LINE")
    if line is None:
        raise UserError("-sc query=SHELL is for the shell; tab completion is set up by -sc install=SHELL")
    try:
        found = list(dict.fromkeys(candidates(line)))
    except Exception:  # a message would appear in the line that is being typed
        return 0
    for each in found:
        print(each)
    return 0


def candidates(line: str) -> Iterator[str]:
    """Yield the words that may stand at the end of a line that is being typed."""
    *before, word = line.split(" ")
    before = [each for each in before[1:] if each]
    position = next((at for at, each in enumerate(before) if each in COMMANDS), None)
    command = COMMANDS[before[position]] if position is not None else COMMANDS["train"]
    rest = before if position is None else before[:position] + before[position + 1 :]
    offers = _offers(command, rest, word, first=not rest and position is None)
    yield from (each for each in offers if each.startswith(word))


def _offers(command: Command, before: Sequence[str], word: str, first: bool) -> Iterable[str]:
    """Return the words that may follow, whatever has been typed of them."""
    known = {name: each for each in (*command.options, *COMMON) for name in (each.name, each.short) if name}
    for at, each in enumerate(before):
        if each in ("--config-dir", "-cd"):
            use_config_dir(before[at + 1])
    last = known.get(before[-1]) if before else None
    if last is not None and last.value and last.implied is None:
        return last.choices
    if word.startswith("-"):
        return [each.name for each in known.values() if not each.hidden]
    if "=" in word:
        return _values(command, before, word)
    words = [each for each in before if not each.startswith("-")]
    if first:
        return [*(name for name in COMMANDS), *OFFERED_FIRST] if not word else [*COMMANDS, *_keys(words, word)]
    match command.name:
        case "list" if not words:
            return ["tasks", "models", "algorithms", "recipes", "combinations"]
        case "show" if not words:
            return [name for group in ("task", "model", "algorithm", "experiment") for name, _ in options(group)]
        case "help":
            return [*COMMANDS, *topics()]
        case "search" if not words:
            return [name for name, _ in options("search")]
        case "reproduce" if not words:
            return [name for name, _ in options("experiment")]
        case "eval" | "resume" | "adapt" | "export" if not words:
            return runs(word)
        case "eval" | "resume" | "adapt":
            return _keys_of_run(Path(words[0]), CHANGES[command.name], word)
        case "report":
            found = runs(word)
            return [*found, *(f"{Path(run).parent}/" for run in found), "out="]
        case "cache":
            return ["clear"]
        case "train" | "search" | "collect":
            return _keys([each for each in words if "=" in each], word)
        case "show":
            return _keys([each for each in words[1:] if "=" in each], word)
    return [f"{key.name}=" for key in (*command.keys, *keys_in(command.keys_file))]


def _values(command: Command, before: Sequence[str], word: str) -> Iterable[str]:
    """Return the words for a key whose value is being typed. Of several values, the last one is completed."""
    key, _, value = word.partition("=")
    start = f"{key}={value[: value.rfind(',') + 1]}"
    own = next((each for each in command.keys if each.name == key), None)
    if own is not None and own.choices:
        return [start + choice for choice in own.choices]
    if is_group(key):
        return [start + name for name, _ in options(key)]
    if command.name in ("train", "search", "show", "collect"):
        words = [each for each in before if "=" in each]
        return [start + choice for choice in _choices(_composed(words), key)]
    if command.name in CHANGES:
        words = [each for each in before if not each.startswith("-")]
        return [start + choice for choice in _choices(_config_of(Path(words[0])), key)]
    return []


def _keys(words: Sequence[str], word: str) -> list[str]:
    """Return the keys below the section that is being typed, of the run that ``words`` ask for."""
    config = _composed(words)
    groups = [f"{group}=" for group in ("task", "model", "algorithm", "experiment") if "." not in word]
    return [*groups, *_below(config, word)]


def _keys_of_run(run: Path, sections: Sequence[str], word: str) -> list[str]:
    """Return the keys of a run that may be changed."""
    config = _config_of(run)
    return _below({section: config[section] for section in sections if section in config}, word)


def _below(config: Mapping[str, Any], word: str) -> list[str]:
    """Return the keys in the section of a configuration that is being typed; sections end with a dot."""
    section, dot, _ = word.rpartition(".")
    node: Any = config
    for name in section.split(".") if dot else ():
        node = node.get(name, {}) if isinstance(node, Mapping) else {}
    names = node.items() if isinstance(node, Mapping) else ()
    shown = [(f"{section}{dot}{name}", value) for name, value in names if not name.startswith("_")]
    return [f"{name}." if isinstance(value, Mapping) and value else f"{name}=" for name, value in shown]


def _composed(words: Sequence[str]) -> dict[str, Any]:
    """Compose the configuration of the words typed so far; if they are wrong, of those that choose options."""
    from omegaconf import OmegaConf

    from metarun.config.compose import unresolved

    for some in (words, [word for word in words if is_group(word.partition("=")[0])], []):
        single = [word for word in some if "," not in word]
        try:
            plain = OmegaConf.to_container(unresolved(single)[0])
        except UserError:
            continue
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items() if key not in ("paper", "experiment")}
    return {}


def _config_of(run: Path) -> dict[str, Any]:
    from metarun.tracking.rundir import RunDirectory

    return RunDirectory(run).config()


def _choices(config: Mapping[str, Any], key: str) -> list[str]:
    """Return the values that the type of a key allows; empty if there are many."""
    from metarun.config.check import CLOSED, choices_of
    from metarun.config.overrides import value_at
    from metarun.config.schema import declaration

    section, _, name = key.rpartition(".")
    inner = value_at(config, section)
    target = CLOSED.get(section) or (inner.get("_target_") if isinstance(inner, Mapping) else None)
    parameter = declaration(str(target)).parameters.get(name) if target else None
    return choices_of(parameter.annotation) if parameter else []


def runs(word: str) -> list[str]:
    """Return the run directories below the folder that is being typed, or below ``outputs``."""
    folder, slash, _ = word.rpartition("/")
    top = Path(folder + slash if slash else "outputs" if Path("outputs").is_dir() else ".")
    return [str(path) for path in islice(_runs_below(top.expanduser()), 500)]


def _runs_below(top: Path) -> Iterator[Path]:
    for seen, (folder, inner, files) in enumerate(os.walk(top)):
        if "config.yaml" in files and "meta.json" in files:
            yield Path(folder)
            inner.clear()
        if seen > MOST_FOLDERS or len(Path(folder).relative_to(top).parts) >= DEEPEST:
            inner.clear()
        inner[:] = sorted(name for name in inner if not name.startswith("."))
