"""A finished run, put back together as its training left it, and what changes to it are worth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.environment import describe_environment
from ppcmi_fast.errors import ConfigError, PpcmiError, RunError
from ppcmi_fast.federation.build import Federation, build_federation
from ppcmi_fast.federation.codecs import Participant
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.dataset import read_dataset
from ppcmi_fast.federation.evaluate import answers_through_wire, mean_dice
from ppcmi_fast.federation.run import FederatedRun, draw_split
from ppcmi_fast.federation.runfolder import RunFolder, has_results, read_json, write_json
from ppcmi_fast.federation.scoring import Scorer, compare_rows, summarise_rows
from ppcmi_fast.federation.views import in_views

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "lab"


@dataclass(frozen=True)
class RestoredRun:
    """Its parts; sites' thresholds are left out, so that all that is compared takes the likeliest class of one view."""

    folder: Path
    config: RunConfig
    classes: int
    root: Path
    millimetres: bool
    federation: Federation
    sites: dict[str, dict[str, Arrays]]

    @classmethod
    def load(cls, folder: Path) -> RestoredRun:
        """Read the run in `folder` to the CPU; nothing is trained.

        Raises:
            RunError: not the folder of a finished run of an experiment.
            ConfigError: its answers are no probabilities, or of several views.
        """
        if not has_results(folder):
            raise RunError(f"{folder}: expected the folder of a finished run; make one with `ppcmi federate`")
        config = RunConfig.load(folder / "config.toml").model_copy(update={"device": "cpu"})
        if folder.resolve().name != f"seed-{config.seed}":
            raise RunError(
                f"{folder}: expected EXPERIMENT/VARIANT/seed-{config.seed}, by which its figures are named, got another"
                " name; make the run by `ppcmi experiment run`"
            )
        if config.codec.mask != "linear":
            raise ConfigError(
                f'codec.mask: expected a run with "linear", got "{config.codec.mask}"; take another run'
            )
        if config.query_views != 1:
            raise ConfigError(
                f"query_views: expected a run with 1, got {config.query_views}; take the run of the same networks that"
                " answers one view"
            )
        torch.set_num_threads(config.threads or torch.get_num_threads())
        dataset = read_dataset(config)
        split = draw_split(config, dataset)
        runfolder = RunFolder(folder)
        runfolder.check_split(split.to_json())
        run = FederatedRun(config, runfolder, dataset, split, Console(quiet=True))
        train, val = run.site_data("train"), run.site_data("val")
        federation = build_federation(config, runfolder, train, val, dataset.classes)
        run.train_codecs(federation)
        run.train_mapper(federation)
        if config.tuning.rounds:
            run.tune(federation)
        federation.mapper.eval()
        return cls(folder, config, dataset.classes, dataset.root, dataset.spacing_known, federation, run.data)

    def ask(self, participant: Participant, images: Tensor) -> Tensor:
        """The server's answers to a site, class scores [N, classes, H, W]."""
        return torch.cat(list(answers_through_wire(participant.site, self.federation.channel, images)))

    def answers(self, part: str, views: int = 1) -> dict[str, Tensor]:
        """Those to every site's images of a part, in one view after another, by site."""
        return {
            p.site.name: self.ask(p, in_views(self.sites[p.site.name][part].images, views))
            for p in self.federation.participants
        }

    def validation(self, scores: Mapping[str, Tensor]) -> float:
        """Mean over sites of Dice on their validation images, of class scores by site."""
        found = [
            mean_dice(scores[n].argmax(1), parts["val"], self.classes) for n, parts in self.sites.items()
        ]
        return sum(found) / len(found)

    def compared(self, answers: Mapping[str, Mapping[str, Tensor]], base: str) -> dict[str, Any]:
        """Dice on the test images of each method's class scores by site, and its difference from that of `base`."""
        tests = {name: parts["test"] for name, parts in self.sites.items()}
        scorer = Scorer(tests, self.classes, self.root, self.millimetres)
        rows = {
            method: scorer.score({name: scores.argmax(1) for name, scores in found.items()})
            for method, found in answers.items()
        }
        differences = {
            row["b"]: {"points": -100 * row["difference"], "p": row["p"]}
            | {"ci95": None if row["ci95"] is None else [-100 * v for v in reversed(row["ci95"])]}
            for row in compare_rows(rows, base, self.config.seed)
            if row["measure"] == "dice"
        }
        return {
            method: {"dice": summarise_rows(found, self.config.seed)["dice"]["mean"]}
            | differences.get(method, {})
            for method, found in rows.items()
        }

    def measured(self, answers: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> dict[str, Any]:
        """Entries of methods that train nothing, by class scores by part and site; all differ from the first."""
        tests = {name: found["test"] for name, found in answers.items()}
        return {
            name: entry | {"validation": self.validation(answers[name]["val"]), "seconds": 0.0}
            for name, entry in self.compared(tests, next(iter(answers))).items()
        }


def keep(question: str, folder: Path, run: RestoredRun, found: dict[str, Any]) -> Path:
    """Add what was found of a run to the JSON of the question, in place of what was known of the same run."""
    path = RESULTS / f"{question}.json"
    known = read_json(path) if path.is_file() else {}
    variant = folder.resolve().parent
    name = f"{variant.parent.name}/{variant.name}, seed {run.config.seed}"
    machine = describe_environment(torch.get_num_threads())
    known[name] = {"size": run.config.size, "cpu": machine["cpu"], "threads": torch.get_num_threads()} | found
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(sorted(known.items())))
    return path


def command(
    measure: Callable[..., dict[str, Any]],
    script: str,
    text: str,
    steps: int = 0,
    arguments: list[str] | None = None,
) -> int:
    """The command of a question: restore a run, `measure` it, with so many steps where it trains, keep what is found.

    Args:
        measure: run and, where there are any, steps -> method -> figures.
        script: path of the question's script, which names its JSON.
        text: what `--help` says.
        steps: unless the command says otherwise; 0 trains nothing, and the command has no such option.
        arguments: of the command; None takes the process's.

    Returns:
        The process's exit status: 2 where the run or the steps cannot be used.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run, EXPERIMENT/VARIANT/seed-N")
    if steps:
        parser.add_argument(
            "--steps", type=int, default=steps, help=f"of each training, {steps} unless given"
        )
    options = parser.parse_args(arguments)
    amount = {"steps": options.steps} if steps else {}
    try:
        if steps and options.steps < 1:
            raise ConfigError(f"--steps: expected at least 1, got {options.steps}; give more")
        run = RestoredRun.load(options.run)
        found = amount | {"methods": measure(run, **amount)}
        print(f"kept in {keep(Path(script).stem, options.run, run, found)}")
    except PpcmiError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
