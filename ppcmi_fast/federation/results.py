"""What a run says of itself: scores and facts, as metrics.json, scores.csv, history.json and examples.npz have them."""

from __future__ import annotations

import resource
import sys
from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppcmi_fast.baselines import Outcome
from ppcmi_fast.baselines.base import CHOSEN, count_parameters, method_of, same_rate, split_stage, trials_of
from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.records import Dataset
from ppcmi_fast.environment import describe_environment
from ppcmi_fast.federation.build import Federation
from ppcmi_fast.federation.calibration import RULE
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.dataset import describe_dataset
from ppcmi_fast.federation.evaluate import pick_examples
from ppcmi_fast.federation.mask_codes import kept_dice
from ppcmi_fast.federation.runfolder import RunFolder, write_json
from ppcmi_fast.federation.scoring import Scorer, compare_rows, summarise_rows
from ppcmi_fast.metrics import write_scores
from ppcmi_fast.training import choose_device, trains_in_bfloat16


@dataclass(frozen=True)
class Results:
    """Measures a run and tells what it cost.

    Attributes:
        config: its settings.
        folder: its folder.
        dataset: its data.
        data: site -> part -> images, of the sites that took part.
    """

    config: RunConfig
    folder: RunFolder
    dataset: Dataset
    data: Mapping[str, Mapping[str, Arrays]]

    def budget(self) -> int:
        """Images that our networks saw: codec batches at all the sites, the mapper's batches of latents, and tuning.

        With patience the mapper may have stopped early: what counts is what it took.
        """
        codec, mapper = self.config.codec, self.config.mapper
        codec_images = codec.rounds * codec.local_steps * codec.batch * len(self.data)
        steps: int = (self.folder.done("mapper") or {}).get("steps", self.config.mapper_steps)
        return codec_images + steps * mapper.batch + self._tuning_images()

    def _tuning_images(self) -> int:
        tuning = self.config.tuning
        return tuning.rounds * tuning.local_steps * tuning.batch * len(self.data)

    def our_facts(self, federation: Federation, *, tuned: bool) -> dict[str, Any]:
        """What it took to train our networks, with fine-tuning or before it."""
        stages = [
            self.folder.done(name) or {} for name in ("codec", "mapper", *(["tuning"] if tuned else []))
        ]
        uploaded = (self.folder.done("mapper") or {})["upload_seconds"]
        networks = [federation.participants[0].learner.image_codec, federation.mapper]
        traffic: Counter[str] = Counter()
        for stage in stages:
            traffic.update(stage.get("traffic", {}))
        return {
            "images_seen": self.budget() - (0 if tuned else self._tuning_images()),
            "seconds": sum(stage.get("seconds", 0.0) for stage in stages) + uploaded,
            "parameters": count_parameters(*networks),
            "bytes_sent": dict(traffic),
        }

    def scorer(self, tests: Mapping[str, Arrays]) -> Scorer:
        """Measures images of sites as the settings say."""
        known, tolerance = self.dataset.spacing_known, self.config.measures.nsd_tolerance
        return Scorer(tests, self.dataset.classes, self.dataset.root, known, tolerance)

    def gather(
        self,
        federation: Federation,
        maps: dict[str, dict[str, Tensor]],
        facts: dict[str, dict[str, Any]],
        payload: dict[str, int],
        latency: dict[str, float],
    ) -> dict[str, Any]:
        """Score class maps, write all files but metrics.json, and return what that is to say.

        Args:
            federation: ours, trained.
            maps: method -> site -> class maps of its test images.
            facts: of each of these methods.
            payload: bytes of a query and of its reply.
            latency: of one query, in milliseconds.
        """
        tests, classes = {name: parts["test"] for name, parts in self.data.items()}, self.dataset.classes
        scorer = self.scorer(tests)
        rows = {method: scorer.score(predictions) for method, predictions in maps.items()}
        methods = {
            method: {**summarise_rows(found, self.config.seed), **facts[method]}
            for method, found in rows.items()
        }
        ours = {
            name: [row.scores for row in rows["ppcmi"] if row.site == name and not row.is_volume]
            for name in tests
        }
        stages = self.folder.stages()
        tried = {name for name in methods if self.config.baselines.rates_to_try(name)}
        device = choose_device(self.config.device)
        metrics = {
            "schema": 1,
            "command": "ppcmi " + " ".join(sys.argv[1:]),
            "dataset": describe_dataset(self.dataset, self.config, self.data),
            "config": self.config.model_dump(mode="json", exclude={"data": True, "reading": {"cache"}}),
            "methods": methods,
            "measures": scorer.describe(),
            "comparisons": compare_rows(rows, "ppcmi", self.config.seed),
            "payload_bytes": {
                **payload,
                "train_upload_total": stages["mapper"]["traffic"].get("upload", 0),
                "codec_rounds_total": sum(stages["codec"]["traffic"].values()),
                "tuning_total": sum(stages.get("tuning", {}).get("traffic", {}).values()),
                "registration_total": federation.channel.bytes_by_kind.get("register", 0),
            },
            "latency_ms": latency,
            "mask_code_dice": {
                p.site.name: kept_dice(p.learner.mask_codec, tests[p.site.name], classes)
                for p in federation.participants
            },
            "calibration": RULE if self.config.calibrated else "",
            "thresholds": {p.site.name: p.site.threshold for p in federation.participants},
            "seconds": seconds(stages, methods, tried),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "environment": {
                **describe_environment(),
                "torch_threads": torch.get_num_threads(),
                "training_device": str(device),
                "training_precision": "bfloat16 autocast" if trains_in_bfloat16(device) else "float32",
            },
        }
        np.savez_compressed(self.folder.root / "examples.npz", **pick_examples(tests, maps, ours))
        write_json(self.folder.root / "history.json", histories(stages, methods, tried))
        write_scores(self.folder.root / "scores.csv", rows)
        return metrics


def answering_stage(stage: str, methods: Mapping[str, Any], tried: Container[str]) -> str | None:
    """A stage without its rate where it gave a method's answers; None for a trial and a rate that was not chosen."""
    name, mark, rate = split_stage(stage, tried)
    chosen = mark == CHOSEN and same_rate(rate, methods[method_of(stage)]["learning_rate"])
    return name if chosen or not mark else None


def histories(stages: Mapping[str, Any], methods: Mapping[str, Any], tried: Container[str]) -> dict[str, Any]:
    """Curves of what answers, by stage without its rate; `tried`: the methods that tried several."""
    named = {answering_stage(stage, methods, tried): entry["history"] for stage, entry in stages.items()}
    return {name: history for name, history in named.items() if name is not None}


def seconds(stages: Mapping[str, Any], methods: Mapping[str, Any], tried: Container[str]) -> dict[str, float]:
    """Time of what answers, by stage without its rate, and of all else that a method tried."""
    found: defaultdict[str, float] = defaultdict(float)
    for stage, entry in stages.items():
        name = answering_stage(stage, methods, tried)
        found[trials_of(method_of(stage)) if name is None else name] += entry["seconds"]
    return dict(found)


def facts_of(outcome: Outcome) -> dict[str, Any]:
    """What it took to train a baseline."""
    return {
        "images_seen": outcome.images_seen,
        "seconds": outcome.seconds,
        "parameters": outcome.parameters,
        "bytes_sent": outcome.bytes_sent,
        "learning_rate": outcome.learning_rate,
        "trial_images": outcome.trial_images,
    }
