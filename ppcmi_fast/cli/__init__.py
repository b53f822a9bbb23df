"""The command `ppcmi`. Loading it loads neither torch nor any extra: help and mistakes answer at once."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `ppcmi` command."""
    import signal

    from ppcmi_fast.cli.app import app

    # A batch system's wish ends a command as Ctrl-C does.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="ppcmi")


__all__ = ["main"]
