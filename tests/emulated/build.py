"""Compiling the emulated device, once for each version of its source and of torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("cuda_on_cpu.cpp")


def obstacle() -> str | None:
    """Why there can be no emulated device here, if so."""
    if torch.version.cuda or torch.version.hip:
        return "this build of torch has kernels for GPUs, so that none can be emulated"
    if os.name != "posix":
        return "the emulated device is built on Linux and macOS alone"
    if compiler() is None:
        return "there is no C++ compiler (CXX, c++ or g++) to build the emulated device"
    return None


def compiler() -> str | None:
    """What CXX names, else c++ or g++."""
    names = [name for name in (os.environ.get("CXX"), "c++", "g++") if name]
    return next((found for name in names if (found := shutil.which(name))), None)


def library() -> Path:
    """The compiled device; it takes half a minute where it has not been compiled before."""
    root = Path(torch.__path__[0])
    words = [
        str(compiler()), "-O1", "-std=c++20", "-w", "-shared", "-fPIC", "-DAT_PER_OPERATOR_HEADERS",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}",
        str(SOURCE), f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}",
    ]  # fmt: skip
    key = hashlib.sha256("\0".join([torch.__version__, *words]).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"metarun-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to someone else")
    target = folder / f"{key}.so"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as building:
            built = Path(building) / target.name
            done = subprocess.run([*words, "-o", str(built)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"does not compile against torch {torch.__version__}:\n{done.stderr[-3000:]}")
            built.replace(target)  # whole or not at all, whoever else builds it
    return target
