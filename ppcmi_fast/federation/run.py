"""The main job: a whole federation in one process, with its baselines, measured on held-out subjects."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppcmi_fast.baselines import Outcome, SiteData, Workbench, run_method
from ppcmi_fast.baselines.base import VALIDATIONS
from ppcmi_fast.data.arrays import Arrays, load_arrays
from ppcmi_fast.data.cache import SliceCache
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.data.splits import Split, limit_training, split_by_subject
from ppcmi_fast.federation.build import (
    Federation,
    build_federation,
    draw_keys,
    start_mapper,
    upload_training_latents,
)
from ppcmi_fast.federation.calibration import calibrated_maps, save_threshold
from ppcmi_fast.federation.codecs import CodecRounds, Participant, share_phantom_codec
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.dataset import check_dataset, check_phantom, read_dataset
from ppcmi_fast.federation.evaluate import mean_dice, measure_latency, predict_through_wire
from ppcmi_fast.federation.late import check_late_sites, late_answers
from ppcmi_fast.federation.mask_codes import rank_advice
from ppcmi_fast.federation.progress import StageProgress
from ppcmi_fast.federation.results import Results, facts_of
from ppcmi_fast.federation.runfolder import RunFolder, load_module, save_module, write_json
from ppcmi_fast.federation.scoring import summarise_rows
from ppcmi_fast.federation.stages import FolderStages, describe
from ppcmi_fast.federation.tuning import TuningRounds, encoder_of
from ppcmi_fast.mapper import train_mapper
from ppcmi_fast.training import FitSettings, FitState, choose_device, device_of

if TYPE_CHECKING:
    from rich.console import Console


class FederatedRun:
    """One run: its settings, its data and its folder; `execute` does the stages that are not yet done."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, dataset: Dataset, split: Split, console: Console
    ) -> None:
        self.config, self.folder, self.dataset, self.console = config, folder, dataset, console
        names = sorted({record.site for record in dataset.records})
        cache = None if config.reading.cache is None else SliceCache(config.reading.cache)
        parts = {"train": split.train, "val": split.val, "test": split.test}
        everything = {
            name: {
                part: load_arrays(dataset, config.size, [r for r in rs if r.site == name], cache)
                for part, rs in parts.items()
            }
            for name in names
        }
        self.data = {n: arrays for n, arrays in everything.items() if n not in config.late_sites}
        self.late = {n: arrays for n, arrays in everything.items() if n in config.late_sites}
        self.results = Results(config, folder, dataset, self.data)

    def site_data(self, part: str) -> dict[str, Arrays]:
        """One part of every site's images."""
        return {name: parts[part] for name, parts in self.data.items()}

    def dice(self, maps: Tensor, data: Arrays) -> float:
        """Mean Dice over images and classes, for validation."""
        return mean_dice(maps, data, self.dataset.classes)

    def _codec_score(self, participant: Participant) -> float:
        images = participant.val.images
        device = device_of(participant.learner)
        maps = [participant.learner.predict(chunk.to(device)).argmax(1).cpu() for chunk in images.split(32)]
        return self.dice(torch.cat(maps), participant.val)

    def train_codecs(self, federation: Federation) -> None:
        """Stage 1: the sites' codecs; weights end in each site's own folder."""
        codec = self.config.codec
        checkpoint = self.folder.checkpoint("codec")
        if self.folder.done("codec") is None:
            with StageProgress(self.console, "codecs", codec.rounds) as progress:
                if codec.sharing == "phantom":
                    state = share_phantom_codec(
                        federation.participants,
                        federation.channel,
                        self.config,
                        checkpoint,
                        self._codec_score,
                        progress.update,
                    )
                else:
                    rounds = CodecRounds(
                        federation.participants,
                        federation.channel,
                        self.config,
                        checkpoint,
                        self._codec_score,
                    )
                    state = rounds.run(progress.update)
            for participant in federation.participants:
                save_module(
                    self.folder.site(participant.site.name) / "codec.safetensors", participant.learner
                )
            self._finish("codec", state)
        for participant in federation.participants:
            load_module(self.folder.site(participant.site.name) / "codec.safetensors", participant.learner)

    def train_mapper(self, federation: Federation) -> None:
        """Stages 2 and 3: protect and upload once, then train the mapper at the server, from the sites' head on."""
        path = self.folder.server / "mapper.safetensors"
        if self.folder.done("mapper") is None:
            started = time.perf_counter()
            if self.config.starts_from_head:
                start_mapper(federation)
            if self.config.mapper_steps:
                upload_training_latents(federation, self.config)
            upload_seconds = time.perf_counter() - started
            state = self._fit_mapper(federation) if self.config.mapper_steps else FitState()
            save_module(path, federation.mapper)
            kinds = ("mapper_start", "upload")
            traffic = {k: v for k, v in federation.channel.bytes_by_kind.items() if k in kinds}
            # JSON has no infinity: a head that stays as it came was never validated.
            best = state.best_value if self.config.mapper_steps else None
            self._finish("mapper", state, traffic=traffic, upload_seconds=upload_seconds, best=best)
        load_module(path, federation.mapper)
        federation.server.mapper = federation.mapper

    def _fit_mapper(self, federation: Federation) -> FitState:
        settings, steps = self.config.mapper, self.config.mapper_steps
        fit = FitSettings(
            steps,
            settings.learning_rate,
            settings.weight_decay,
            validate_every=max(1, steps // VALIDATIONS),
            patience=settings.patience,
            seed=self.config.seed,
        )
        with StageProgress(self.console, "mapper", steps) as progress:
            return train_mapper(
                federation.mapper,
                federation.server.latent_set("train"),
                federation.server.latent_set("val"),
                fit,
                settings.batch,
                balance=settings.balance,
                checkpoint=self.folder.checkpoint("mapper"),
                progress=progress.update,
                start_counts=self.config.starts_from_head,
            )

    def tune(self, federation: Federation) -> None:
        """Stage 4, where it is asked for: encoders and mapper end to end, through the protected space."""
        names = [p.site.name for p in federation.participants]
        encoders = {name: self.folder.site(name) / "encoder_tuned.safetensors" for name in names}
        path = self.folder.server / "mapper_tuned.safetensors"

        for participant in federation.participants:
            participant.site.threshold = None

        def score(participant: Participant) -> float:
            found = predict_through_wire(participant.site, federation.channel, participant.val.images)
            return self.dice(found, participant.val)

        if self.folder.done("tuning") is None:
            with StageProgress(self.console, "tuning", self.config.tuning.rounds) as progress:
                state = TuningRounds(
                    federation.participants,
                    federation.channel,
                    self.config,
                    self.folder.checkpoint("tuning"),
                    score,
                ).run(progress.update)
            for participant in federation.participants:
                save_module(encoders[participant.site.name], encoder_of(participant.learner))
            save_module(path, federation.mapper)
            self._finish("tuning", state)
        for participant in federation.participants:
            load_module(encoders[participant.site.name], encoder_of(participant.learner))
        load_module(path, federation.mapper)

    def _finish(self, stage: str, state: FitState, **more: Any) -> None:
        self.folder.finish(stage, {**describe(state), **more})

    def train_baselines(self) -> dict[str, Outcome]:
        """Every baseline of the settings, by name, on the images and budget that ours had."""
        settings = self.config.baselines
        bench = Workbench(
            {name: SiteData(**parts) for name, parts in self.data.items()},
            self.dataset.classes,
            settings.images or self.results.budget(),
            settings.batch,
            settings.learning_rate,
            self.config.seed,
            FolderStages(self.folder, self.console),
            settings.rounds,
            settings.mu,
            settings.architecture,
            settings.published_width,
            choose_device(self.config.device),
            work=settings.work,
        )
        return {
            name: run_method(
                name, replace(bench, learning_rate=settings.rate_of(name)), settings.rates_to_try(name)
            )
            for name in settings.methods
        }

    def execute(self) -> dict[str, Any]:
        """Do every stage that is not done, and write scores.csv, history.json, examples.npz and metrics.json."""
        draw_keys(self.config, self.folder, [*self.data, *self.late])
        federation = build_federation(
            self.config, self.folder, self.site_data("train"), self.site_data("val"), self.dataset.classes
        )
        self.train_codecs(federation)
        self.train_mapper(federation)
        tests = self.site_data("test")
        maps = {"ppcmi": self._answers(federation)}
        if self.config.tuning.rounds:
            one_shot = maps["ppcmi"]
            self.tune(federation)
            maps = {"ppcmi": self._answers(federation), "ppcmi_one_shot": one_shot}
        for participant in federation.participants:
            save_threshold(self.folder, participant.site)
        first = federation.participants[0]
        images, views = tests[first.site.name].images, self.config.query_views
        payload = federation.payload_per_image(images[:1], views)
        latency = measure_latency(first.site, federation.channel, images, views)
        if self.config.bits_up != 32 or self.config.bits_down != 32:
            exact = build_federation(
                self.config.model_copy(update={"bits_up": 32, "bits_down": 32}),
                self.folder,
                self.site_data("train"),
                self.site_data("val"),
                self.dataset.classes,
                {p.site.name: p.learner for p in federation.participants},
            )
            exact.server.mapper = federation.mapper
            maps["ppcmi_float32"] = self._answers(exact)
        outcomes = self.train_baselines()
        maps |= {name: outcome.maps for name, outcome in outcomes.items()}
        facts = {name: facts_of(outcome) for name, outcome in outcomes.items()}
        for name in maps.keys() - outcomes.keys():
            facts[name] = self.results.our_facts(federation, tuned=name != "ppcmi_one_shot")
        metrics = self.results.gather(federation, maps, facts, payload, latency)
        if self.late:
            metrics["late_sites"] = self._score_late(federation)
        # Last: a run that has it is finished.
        write_json(self.folder.root / "metrics.json", metrics)
        return metrics

    def _answers(self, federation: Federation) -> dict[str, Tensor]:
        """Class maps of every site's test images, each site's threshold chosen first."""
        tests, classes = self.site_data("test"), self.dataset.classes
        return {
            p.site.name: calibrated_maps(
                p, federation.channel, tests[p.site.name].images, classes, self.config
            )
            for p in federation.participants
        }

    def _score_late(self, federation: Federation) -> dict[str, Any]:
        """Our scores of sites that joined after the training, as `methods` has those of the others."""
        maps = late_answers(self.config, self.folder, federation, self.late, self.dataset.classes)
        tests = {name: parts["test"] for name, parts in self.late.items()}
        return summarise_rows(self.results.scorer(tests).score(maps), self.config.seed)


def check_data(config: RunConfig, dataset: Dataset) -> None:
    """Raise PpcmiError unless a data set can form the federation that the settings ask for."""
    check_dataset(dataset)
    config.check_classes(dataset.classes)
    check_phantom(config, dataset.classes)
    check_late_sites(config, {record.site for record in dataset.records})


def draw_split(config: RunConfig, dataset: Dataset) -> Split:
    """The run's training, validation and test images, a function of data and settings alone."""
    split = split_by_subject(dataset.records, seed=config.seed)
    return limit_training(split, config.reading.train_images, config.seed)


def federate(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a federation on real images and write everything about it under `out`.

    Args:
        config: the settings.
        out: run folder; must be new or empty unless `resume` or `overwrite`.
        resume: go on with the run in `out`, stage by stage and step by step.
        overwrite: replace the run in `out`.
        console: where progress is shown; None shows nothing.

    Returns:
        The content of metrics.json.

    Raises:
        PpcmiError: bad data, settings or folder; raised before any work starts.
    """
    from rich.console import Console

    torch.set_num_threads(config.threads or torch.get_num_threads())
    dataset = read_dataset(config)
    check_data(config, dataset)
    split = draw_split(config, dataset)
    folder = RunFolder.open(out, config, resume=resume, overwrite=overwrite)
    folder.check_split(split.to_json())
    run = FederatedRun(config, folder, dataset, split, console or Console(quiet=True))
    advice = rank_advice(config, run.site_data("train"), dataset.classes)
    if advice:
        run.console.print(f"note: {advice}", highlight=False)
    return run.execute()
