"""The command `ppcmi`. Loading it loads neither torch nor any extra: help and mistakes answer at once."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `ppcmi` command."""
    from ppcmi_fast.cli.app import app

    app(prog_name="ppcmi")


__all__ = ["main"]
