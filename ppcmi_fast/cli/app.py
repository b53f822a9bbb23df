"""The commands. Each imports what it needs when it runs."""

from __future__ import annotations

import shlex
import shutil
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ppcmi_fast import __version__
from ppcmi_fast.cli import bench, data, experiment
from ppcmi_fast.cli.errors import Group, resumable
from ppcmi_fast.errors import ConfigError, DataError, RunError

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train one segmentation model across sites that show each other no image, over keyed latents.",
)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(experiment.app, name="experiment")


class Modality(str, Enum):
    """What a phantom looks like; the first five are written in the layouts of published sets."""

    psfh = "psfh"
    nerve = "nerve"
    fumpe = "fumpe"
    heart = "heart"
    acdc = "acdc"
    cardiac = "cardiac"
    ultrasound = "ultrasound"


# The demo trains for a few minutes on two cores, so it is small in everything.
DEMO_SITES, DEMO_SUBJECTS, DEMO_SLICES, DEMO_SIZE = 3, 10, 4, 64
FOLDER_SUBJECTS, FOLDER_SLICES, FOLDER_SIZE = 8, 5, 128
DEMO_SETTINGS = ("codec.rounds=16", "codec.local_steps=8", "mapper.steps=400", "mapper.views=4")

Out = Annotated[Path, typer.Option("--out", help="Run folder to write.", show_default=True)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="One setting, such as mapper.steps=800; may be repeated."
    ),
]
Size = Annotated[int | None, typer.Option("--size", min=8, help="Edge of the images in pixels.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of splits and training.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; all cores when absent.")]


def _overrides(settings: list[str] | None, **options: int | None) -> list[str]:
    # The named options are shorthand for settings; an explicit --set of the same name comes last and wins.
    return [f"{name}={value}" for name, value in options.items() if value is not None] + list(settings or [])


def _again(command: list[str], settings: list[str]) -> str:
    pairs = [part for setting in settings for part in ("--set", setting)]
    return shlex.join(["ppcmi", *command, *pairs, "--resume"])


def _run(source: Path, out: Path, settings: list[str], again: str, *, resume: bool, overwrite: bool) -> None:
    """Load the settings, run the federation, write the report and print what came out."""
    started = time.perf_counter()
    from ppcmi_fast.cli.table import print_results

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite: expected at most one of them, got both")
    console = Console()
    with resumable(again):
        from ppcmi_fast.federation.config import RunConfig
        from ppcmi_fast.federation.run import federate as run_federation
        from ppcmi_fast.report import figures

        config = RunConfig.load(source, settings)
        # A missing extra should show before an hour of training, not after it.
        figures.require()
        metrics: dict[str, Any] = run_federation(
            config, out, resume=resume, overwrite=overwrite, console=console
        )
        from ppcmi_fast.report import write_report

        page = write_report(out)
        if not resume:
            # Of a resumed run only its parts are known, so it has no total.
            _keep_total(out / "metrics.json", metrics, time.perf_counter() - started)
            page = write_report(out)
    print_results(console, metrics, [page, out / "metrics.json"])


def _keep_total(path: Path, metrics: dict[str, Any], seconds: float) -> None:
    """Add the time of the whole command, report included, to the figures of the run."""
    from ppcmi_fast.federation.runfolder import write_json

    metrics["seconds"] = {**metrics.get("seconds", {}), "total": seconds}
    write_json(path, metrics)


@app.command()
def federate(
    source: Annotated[
        Path, typer.Argument(metavar="CONFIG|FOLDER", help="A TOML file, or a folder of images.")
    ],
    out: Out,
    resume: Resume = False,
    overwrite: Overwrite = False,
    settings: Setting = None,
    size: Size = None,
    seed: Seed = None,
    threads: Threads = None,
) -> None:
    """Run a whole federation in one process on real images, U-Nets beside it, and report what it is worth."""
    chosen = _overrides(settings, size=size, seed=seed, threads=threads)
    again = _again(["federate", str(source), "--out", str(out)], chosen)
    _run(source, out, chosen, again, resume=resume, overwrite=overwrite)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    modality: Annotated[Modality, typer.Option(help="What the phantoms look like.")] = Modality.psfh,
    resume: Resume = False,
    overwrite: Overwrite = False,
    settings: Setting = None,
    seed: Seed = None,
    threads: Threads = None,
) -> None:
    """Run a federation on synthetic phantoms: minutes, no download."""
    # Beside the run and not in it, because a run folder must be empty to start with.
    data = out.parent / f"{out.name}-{modality.value}-phantoms"
    fitting = _demo_phantoms(modality.value, data)
    own = _overrides(settings, seed=seed, threads=threads)
    again = _again(["demo", "--out", str(out), "--modality", modality.value], own)
    chosen = [f"size={DEMO_SIZE}", *fitting, *DEMO_SETTINGS, *own]
    _run(data, out, chosen, again, resume=resume, overwrite=overwrite)


def _demo_phantoms(kind: str, data: Path) -> list[str]:
    """Write the phantoms unless they are there; the settings that fit them."""
    from ppcmi_fast.data.phantom import NATIVE_KINDS, write_native, write_phantom

    native = NATIVE_KINDS.get(kind)
    if not data.is_dir():
        # Written aside, so that what is under the final name is whole.
        part = data.with_name(f"{data.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        if native:
            write_native(kind, part, subjects=native.demo_subjects, sites=DEMO_SITES, size=native.demo_size)
        else:
            sizes = {"sites": DEMO_SITES, "subjects": DEMO_SUBJECTS, "slices": DEMO_SLICES, "size": DEMO_SIZE}
            write_phantom(kind, part, **sizes)
        part.rename(data)
    return list(native.demo_settings) if native else [f"codec.phantom={kind}"]


@app.command()
def phantom(
    modality: Annotated[Modality, typer.Argument(help="What they look like.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, new or empty.")],
    subjects: Annotated[
        int | None, typer.Option(min=1, help="Subjects in all; of each site for cardiac and ultrasound.")
    ] = None,
    sites: Annotated[int, typer.Option(min=1)] = 4,
    slices: Annotated[
        int | None, typer.Option(min=1, help="Images of each subject; cardiac and ultrasound only.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=32, help="Longer edge in pixels; as published when absent.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write synthetic images with masks, each site different.

    psfh, nerve, fumpe, heart and acdc have the exact layout of the published sets, with sites.csv; cardiac and
    ultrasound the folder layout with manifest.csv.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"OUT: expected a new or empty folder, {out} holds something; name another folder")
    from ppcmi_fast.data.phantom import NATIVE_KINDS, write_native, write_phantom

    if modality.value in NATIVE_KINDS:
        if slices is not None:
            raise ConfigError(
                f"--slices: expected for cardiac and ultrasound only, got it for {modality.value}; omit it"
            )
        try:
            count = write_native(modality.value, out, subjects=subjects, sites=sites, seed=seed, size=size)
        except ValueError as error:
            raise ConfigError(f"--{error}") from None
        typer.echo(f"wrote {count} subjects of {sites} sites to {out}; see them: ppcmi data check {out}")
        return
    subjects, slices = subjects or FOLDER_SUBJECTS, slices or FOLDER_SLICES
    write_phantom(
        modality.value,
        out,
        sites=sites,
        subjects=subjects,
        slices=slices,
        size=size or FOLDER_SIZE,
        seed=seed,
    )
    typer.echo(f"wrote {sites * subjects * slices} images of {sites} sites to {out}")


@app.command()
def keygen(path: Annotated[Path, typer.Argument(help="Key file to write; it must not exist yet.")]) -> None:
    """Write a new key file of 32 random bytes, readable by you alone. The key itself is never shown."""
    from ppcmi_fast.keys import SiteKey

    # The file holds the bytes only; which federation they serve is said where the key is loaded.
    SiteKey.generate("keygen").save(path)
    typer.echo(
        f"wrote {path} (32 bytes, mode 0600); keep a copy where no other site and no server can read it"
    )


@app.command()
def segment(
    image: Annotated[
        Path, typer.Argument(help="A grey picture, a volume (NIfTI, MHA, NRRD), a folder of DICOM.")
    ],
    run: Annotated[Path, typer.Option("--run", help="A finished run folder.")],
    site: Annotated[str, typer.Option("--site", help="The site whose key and codec are used.")],
    out: Annotated[
        Path, typer.Option("--out", help="Mask to write: PNG, the volume's format, or DICOM SEG (.dcm).")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the mask if it exists.")] = False,
    views: Annotated[
        int | None,
        typer.Option(
            "--views",
            help="Views of the image to ask about; the run's, for which thresholds were chosen, unless given.",
        ),
    ] = None,
) -> None:
    """Segment one image with a trained run: encode and protect, map at the server, recover and decode."""
    if not image.exists():
        raise DataError(
            f"IMAGE: expected an image file or a DICOM folder, {image} does not exist; check the path"
        )
    if not run.is_dir():
        raise RunError(
            f"--run: expected a run folder, {run} does not exist; ppcmi federate DATA --out {run} makes one"
        )
    if out.exists() and not overwrite:
        raise DataError(f"--out: {out} exists; name another file or add --overwrite")
    from ppcmi_fast.federation.predict import segment_image

    pixels = segment_image(run, site, image, out, views)
    typer.echo(f"wrote {out} ({', '.join(f'class {name}: {count} px' for name, count in pixels.items())})")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A finished run folder.")]) -> None:
    """Write report.html of a run again, and print its table."""
    from ppcmi_fast.cli.table import print_results
    from ppcmi_fast.report import write_report
    from ppcmi_fast.report.runfolder import load_metrics

    page = write_report(run)
    print_results(Console(), load_metrics(run / "metrics.json"), [page])


@app.command()
def doctor() -> None:
    """Show versions, instruction sets, kernels, CUDA, and how to get what is missing."""
    from ppcmi_fast.cli.doctor import examine

    examine(Console())


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ppcmi-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
