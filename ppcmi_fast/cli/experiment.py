"""`ppcmi experiment`: experiments as files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ppcmi_fast.errors import ConfigError, RunError

app = typer.Typer(no_args_is_help=True, help="Run and table experiments that are planned in files.")

FOLDER = Path("experiments")
OUT = Annotated[Path, typer.Option("--out", help="Folder of the runs, one below it for each experiment.")]
DEFAULT_OUT = Path("runs/experiments")
DOCS = Annotated[Path, typer.Option(help="Where results/experiments/ and experiments_results.md are.")]
DEFAULT_DOCS = Path("docs")


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
    names: Annotated[list[str], typer.Argument(metavar="NAME|FILE...")],
    out: OUT = DEFAULT_OUT,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny runs on phantoms: that all of it works.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A variant to run, * and ? standing for others; may be repeated. Of one experiment."
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed to run; may be repeated. Of one experiment.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace runs of other settings or subjects than now.")
    ] = False,
    max_minutes: Annotated[float, typer.Option(min=0, help="Stop then; the same command goes on.")] = 0.0,
) -> None:
    """Make the runs of experiments that are not made yet; what was interrupted goes on."""
    from ppcmi_fast.experiments.plan import data_folder, load_plan, planned_runs
    from ppcmi_fast.experiments.runner import run_experiment

    if len(names) > 1 and (only or seed):
        raise ConfigError(
            f"--{'only' if only else 'seed'}: expected one experiment with it, got {len(names)};"
            " name one, or leave it out"
        )
    paths = [_file(name) for name in names]
    # A folder is known by the experiment's name alone.
    plans = {path.stem: load_plan(path) for path in paths}
    if len(plans) < len(paths):
        raise ConfigError(
            f"NAME: expected experiments of different names, got {', '.join(map(str, paths))}; name each once"
        )
    # What is wrong with another is said before the first is run, which says so of itself.
    for plan in list(plans.values())[1:]:
        planned_runs(plan, data_folder(plan, out, smoke=smoke), smoke=smoke)
    began = time.monotonic()
    for name, plan in plans.items():
        folder = out / (f"{name}-smoke" if smoke else name)
        left = max_minutes - (time.monotonic() - began) / 60
        if max_minutes and left <= 0:
            typer.echo(f"not begun: {folder}")
            continue
        if len(plans) > 1:
            typer.echo(f"{name}:")
        done = run_experiment(
            plan,
            folder,
            smoke=smoke,
            only=only or (),
            seeds=seed or (),
            overwrite=overwrite,
            max_minutes=left if max_minutes else 0.0,
            console=Console(),
            tell=lambda line: typer.echo(line),
        )
        typer.echo(f"done: {folder}" if done else f"not done yet: {folder}")


@app.command()
def table(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME|FILE]...")] = None,
    out: OUT = DEFAULT_OUT,
    docs: DOCS = DEFAULT_DOCS,
) -> None:
    """Keep the figures of finished runs as JSON, beside those kept before, and make the page and its pictures."""
    from ppcmi_fast.experiments.collect import collect
    from ppcmi_fast.experiments.figures import draw, draw_rows
    from ppcmi_fast.experiments.plan import load_plan
    from ppcmi_fast.experiments.records import read_records, write_records
    from ppcmi_fast.experiments.variants import variants_of
    from ppcmi_fast.federation.runfolder import has_results

    figures = docs / "figures"
    for name in names or []:
        path = _file(name)
        record, runs = _record(docs, path), out / path.stem
        before = read_records(record)["runs"] if record.is_file() else []
        result = collect(path.stem, load_plan(path), runs, before, typer.echo)
        write_records(record, result)
        if result["figure"] is not None:
            draw(result, figures / f"experiment_{path.stem}.png")
        first = max(variants_of(result), key=lambda variant: len(variant.methods))
        example = runs / first.name / f"seed-{first.seeds[0]}"
        # Pictures are drawn where the run is, once it is finished; else those of before stay.
        if result["rows"] and has_results(example):
            draw_rows(example, first.records[0], figures / f"experiment_{path.stem}_rows.png")
        typer.echo(f"kept {record}")
    _write_page(docs)


@app.command()
def compare(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE")],
    out: OUT = DEFAULT_OUT,
    docs: DOCS = DEFAULT_DOCS,
) -> None:
    """Compare what any finished run has trained anew with what is kept of it, and note it on the page."""
    from ppcmi_fast.experiments.plan import load_plan
    from ppcmi_fast.experiments.records import read_records, write_records
    from ppcmi_fast.experiments.repeats import compare_repeats

    path = _file(name)
    plan, record = load_plan(path), _record(docs, path)
    result = read_records(record)
    found = compare_repeats(plan, result["runs"], out)
    if not found:
        raise RunError(
            f"{out}: expected a finished run that has trained anew what {path.stem} has, found none;"
            f" run a piece of it elsewhere: ppcmi experiment run {path.stem} --only VARIANT --out FOLDER"
        )
    for line in found:
        typer.echo(line)
    write_records(record, result)
    _write_page(docs)


def _record(docs: Path, path: Path) -> Path:
    return _kept(docs) / f"{path.stem}.json"


def _kept(docs: Path) -> Path:
    return docs / "results" / "experiments"


def _write_page(docs: Path) -> None:
    from ppcmi_fast.experiments.tables import write_page

    page = docs / "experiments_results.md"
    write_page(_kept(docs), page)
    typer.echo(f"wrote {page}")
