"""Progress bars of a run's stages."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class StageProgress:
    """A bar for one stage, with the newest loss and validation figure behind it."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self.bar = Progress(
            TextColumn(f"{name:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self.task = self.bar.add_task(name, total=total, figures="")

    def __enter__(self) -> StageProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, done: int, entry: dict[str, float]) -> None:
        """Show `done` units of work and the newest history entry."""
        figures = " ".join(f"{name} {entry[name]:.4f}" for name in ("loss", "val") if name in entry)
        self.bar.update(self.task, completed=done, figures=figures)
