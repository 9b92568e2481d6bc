"""Other libraries, each run by the training loop of its own examples."""

from __future__ import annotations

from importlib.util import find_spec

from metarun.bench.implementations import Implementation
from metarun.bench.peers import higher, jax, learn2learn, torchopt

BASE = learn2learn.IMPLEMENTATION
"""Implementation that speeds are relative to. It takes part whether or not its package is installed."""
PEERS = {peer.name: peer for peer in (BASE, higher.IMPLEMENTATION, torchopt.IMPLEMENTATION, jax.IMPLEMENTATION)}


def installed(peer: Implementation) -> bool:
    """Return whether the package of a peer is installed."""
    return peer.package is None or find_spec(peer.package) is not None
