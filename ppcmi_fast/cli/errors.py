"""How a command ends: one line and exit code 2 for mistakes, 130 for Ctrl-C and SIGTERM, a traceback for our bugs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from ppcmi_fast.errors import PpcmiError

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130

# Libraries that an extra brings; a missing one is no bug, it has a cure.
_TRAIN_LIBRARIES = frozenset({"monai", "matplotlib", "contourpy", "jinja2", "scipy", "PIL"})


def _error_line(message: str) -> None:
    # soft_wrap: one line stays one line, so that it can be searched for and copied.
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), " ".join(message.split())), soft_wrap=True)


class Group(TyperGroup):
    """The command group: turns expected failures into messages, whichever command they come from."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except PpcmiError as error:
            _error_line(str(error))
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in _TRAIN_LIBRARIES:
                raise
            _error_line(f'{error.name} is not installed; cure: pip install "ppcmi-fast[train]"')
        except OSError as error:
            # Files the user named, a full disk; an OSError that tells nothing keeps its traceback.
            if error.filename is None and error.strerror is None:
                raise
            _error_line(f"{error.filename or 'system'}: {error.strerror}")
        except KeyboardInterrupt:
            _error_line("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        raise typer.Exit(EXIT_MISTAKE)


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """On Ctrl-C or SIGTERM say which command goes on where this one stopped."""
    try:
        yield
    except KeyboardInterrupt:
        console = Console(stderr=True, highlight=False)
        console.print("\n[bold]interrupted[/]; what is done is kept. Go on with:")
        console.print(Text("  " + command), soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
