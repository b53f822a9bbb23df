"""Ctrl-C, or a batch system's wish, between two units of work instead of inside one, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What a batch system sends before it ends a job is asked for like Ctrl-C.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeferredInterrupt:
    """Within the block, the first SIGINT or SIGTERM only sets `requested`; a SIGINT after it interrupts at once.

    The loop asks `requested` between its units of work, saves, and calls `stop`. Outside the main thread, where
    Python delivers no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # A process started to ignore one (a shell's background job) goes on ignoring it; and a handler that
                # Python did not set could not be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A batch system may ask twice, once the process and once its group.
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def stop(self) -> None:
        """Raise what was deferred."""
        raise KeyboardInterrupt
