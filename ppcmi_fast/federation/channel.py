"""The way between sites and server in one process: bytes only, counted, and kept for inspection when asked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ppcmi_fast import wire

if TYPE_CHECKING:
    from ppcmi_fast.federation.server import Server


class Channel:
    """Hands a site's bytes to the server and the server's answer back.

    Args:
        server: who receives.
        record: keep every byte string that went to the server, for tests and audits.
    """

    def __init__(self, server: Server, *, record: bool = False) -> None:
        self.server = server
        self.bytes_by_kind: Counter[str] = Counter()
        self.recorded: list[bytes] | None = [] if record else None

    def send(self, message: bytes) -> bytes | None:
        """Deliver; returns the server's answer, if it has one.

        Raises:
            WireError: the server does not take the message.
        """
        if self.recorded is not None:
            self.recorded.append(message)
        answer = self.server.receive(message)
        self.bytes_by_kind[self._kind(message)] += len(message)
        if answer is not None:
            self.bytes_by_kind[self._kind(answer)] += len(answer)
        return answer

    def _kind(self, message: bytes) -> str:
        return wire.decode(message, self.server.federation_id, self.server.epoch).kind
