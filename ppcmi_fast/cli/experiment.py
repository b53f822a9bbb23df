"""`ppcmi experiment`: experiments as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ppcmi_fast.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Run and table experiments that are planned in files.")

FOLDER = Path("experiments")
OUT = Annotated[Path, typer.Option("--out", help="Folder of the runs, one below it for each experiment.")]
DEFAULT_OUT = Path("runs/experiments")


def _file(name: str) -> Path:
    """A path, or the name of a file in the folder experiments."""
    path = Path(name)
    return path if path.suffix == ".toml" else FOLDER / f"{name}.toml"


@app.command("list")
def list_experiments() -> None:
    """Name the experiments of the folder `experiments` with what they ask."""
    from ppcmi_fast.experiments.plan import load_plan

    files = sorted(FOLDER.glob("*.toml"))
    if not files:
        raise ConfigError(
            f"{FOLDER}: expected experiment files here, found none; call it from the project's root"
        )
    for path in files:
        plan = load_plan(path)
        runs = sum(len(plan.seeds_of(variant)) for variant in plan.variants)
        typer.echo(f"{path.stem}: {plan.question} ({runs} runs on {plan.data})")


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE")],
    out: OUT = DEFAULT_OUT,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny runs on phantoms: that all of it works.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A variant to run, * and ? standing for others; may be repeated.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed to run; may be repeated.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace runs of other settings than the file has now.")
    ] = False,
    max_minutes: Annotated[float, typer.Option(min=0, help="Stop then; the same command goes on.")] = 0.0,
) -> None:
    """Make the runs of an experiment that are not made yet; what was interrupted goes on."""
    from ppcmi_fast.experiments.plan import load_plan
    from ppcmi_fast.experiments.runner import run_experiment

    path = _file(name)
    folder = out / (f"{path.stem}-smoke" if smoke else path.stem)
    done = run_experiment(
        load_plan(path),
        folder,
        smoke=smoke,
        only=only or (),
        seeds=seed or (),
        overwrite=overwrite,
        max_minutes=max_minutes,
        console=Console(),
        tell=lambda line: typer.echo(line),
    )
    typer.echo(f"done: {folder}" if done else f"not done yet: {folder}")


@app.command()
def table(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME|FILE]...")] = None,
    out: OUT = DEFAULT_OUT,
    docs: Annotated[
        Path, typer.Option(help="Where results/experiments/ and experiments_results.md are.")
    ] = Path("docs"),
) -> None:
    """Keep the figures of finished experiments as JSON, and make the page and its figures from all that are kept."""
    from ppcmi_fast.experiments.figures import draw
    from ppcmi_fast.experiments.plan import load_plan
    from ppcmi_fast.experiments.tables import collect, write_page

    kept = docs / "results" / "experiments"
    kept.mkdir(parents=True, exist_ok=True)
    for name in names or []:
        path = _file(name)
        result = collect(path.stem, load_plan(path), out / path.stem)
        (kept / f"{path.stem}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if result["figure"] is not None:
            draw(result, docs / "figures" / f"experiment_{path.stem}.png")
        typer.echo(f"kept {kept / path.stem}.json")
    write_page(kept, docs / "experiments_results.md")
    typer.echo(f"wrote {docs / 'experiments_results.md'}")
