"""Child processes that stop when their parent ends for any reason, because a pipe that it holds is closed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

VARIABLE = "METARUN_LIFELINE"


@contextlib.contextmanager
def child(
    words: Sequence[str], environment: Mapping[str, str], results: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a metarun command that stops, after a checkpoint, when this process ends.

    Args:
        words: Program and arguments.
        environment: The child's environment variables.
        results: False to discard what it writes to standard output; errors are shown all the same.
    """
    import subprocess  # slow to import, as are the modules that watch() uses, and most processes need neither

    theirs, ours = os.pipe()
    try:
        try:
            # A session of its own: Ctrl-C then reaches this process alone, which asks the child to stop once. A second
            # signal would stop it before its checkpoint.
            own = {**environment, VARIABLE: str(theirs)}
            output = None if results else subprocess.DEVNULL
            process = subprocess.Popen(words, env=own, pass_fds=(theirs,), start_new_session=True, stdout=output)
        finally:
            os.close(theirs)
        yield process
    finally:
        os.close(ours)


def watch() -> None:
    """In a child process, raise SIGTERM when the parent has ended. Other processes are not affected."""
    number = os.environ.pop(VARIABLE, "")
    if not number.isdigit():
        return
    import signal
    import threading

    def wait() -> None:
        try:
            os.set_inheritable(int(number), False)
            os.read(int(number), 1)
        except OSError:  # not the descriptor of a parent's pipe
            return
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
