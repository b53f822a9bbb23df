"""For all tests: one thread, and no network but this machine's own addresses."""

from __future__ import annotations

import os

# Before torch is imported: OpenMP reads this once. Children started by tests inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import ipaddress
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

_connect = socket.socket.connect


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket's path
    host = str(address[0])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connect_locally(self: socket.socket, address: Any) -> None:
    if not _is_local(address):
        raise RuntimeError(f"a test tried to reach {address}; tests make or ship what they need")
    _connect(self, address)


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive() -> Iterator[None]:
    # A test run in the background of a shell ignores SIGINT, and so would the commands that the tests start.
    defaults: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _connect_locally)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Also after a test that set another number.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
