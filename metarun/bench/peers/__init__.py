"""Other libraries, each driven by the loop that it publishes for the purpose."""

from __future__ import annotations

from importlib.util import find_spec

from metarun.bench.implementations import Implementation
from metarun.bench.peers import higher, jax, learn2learn, torchopt

BASE = learn2learn.IMPLEMENTATION
"""What speeds are relative to. Takes part whether or not its package is installed."""
PEERS = {peer.name: peer for peer in (BASE, higher.IMPLEMENTATION, torchopt.IMPLEMENTATION, jax.IMPLEMENTATION)}


def installed(peer: Implementation) -> bool:
    """Whether a peer can take part here."""
    return peer.package is None or find_spec(peer.package) is not None
