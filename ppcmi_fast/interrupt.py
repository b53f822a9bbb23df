"""Ctrl-C between two units of work instead of inside one, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class DeferredInterrupt:
    """Within the block, the first SIGINT only sets `requested`; a second one interrupts at once.

    The loop asks `requested` between its units of work, saves, and calls `stop`. Outside the main thread, where
    Python delivers no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.requested = False
        self._active = False
        self._previous: object = None

    def __enter__(self) -> DeferredInterrupt:
        # A process started to ignore SIGINT (nohup, a background job) goes on ignoring it.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if threading.current_thread() is threading.main_thread() and not ignored:
            self._previous = signal.signal(signal.SIGINT, self._note)
            self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._previous)  # type: ignore[arg-type]
            self._active = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def stop(self) -> None:
        """Raise what was deferred."""
        raise KeyboardInterrupt
