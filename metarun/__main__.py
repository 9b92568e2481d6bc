"""``python -m metarun``."""

import os
import sys

# Python puts the current directory first on its path, where a file that belongs to a run could take a library's name.
if sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]
    checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if checkout == os.getcwd():  # metarun itself lies there, perhaps not installed
        sys.path.append(checkout)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), checkout]))

from metarun.cli import console

console()
