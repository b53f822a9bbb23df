"""How long training took: what experiments share counts once, trials are told apart."""

from __future__ import annotations

import copy
from pathlib import Path

from experiment_runs import POOLED, plan, quiet, write_run
from tiny_runs import TINY

from ppcmi_fast.experiments import tables
from ppcmi_fast.experiments.collect import collect
from ppcmi_fast.experiments.effort import Effort, comparison_of


def test_what_trained_all_of_it_counts_shared_networks_once(tmp_path: Path) -> None:
    two = plan(variants=[{"name": "one"}, {"name": "two"}])
    methods = {"ppcmi": 0.0, "ppcmi_one_shot": 0.0, "ppcmi_float32": 0.0, "unet_centralised": 0.0}
    for variant in ("one", "two"):
        write_run(two, tmp_path, methods, variant=variant)
    result = collect("name", two, tmp_path, [], quiet)
    # Ours and the pooled network, a minute each, of one seed; the same under a second name.
    assert Effort.of([result, result]) == Effort(training=120.0, trials=0.0, untold=0)
    other = copy.deepcopy(result)
    other["runs"][0]["methods"]["ppcmi"]["seconds"] = 7080.0
    assert Effort.of([result, other]).training == 7200.0
    assert "took 2.0 hours of one run at a time. 0.0 of them were for" in tables.page([result, other])


def test_what_the_comparison_itself_took_is_told_apart(tmp_path: Path) -> None:
    two = plan(variants=[{"name": "all"}, {"name": "wider"}])
    for variant in ("all", "wider"):
        write_run(two, tmp_path, {"ppcmi": 0.0}, variant=variant)
    result = collect("name", two, tmp_path, [], quiet)
    hours = {"all": 1.0, "wider": 2.0}
    for record in result["runs"]:
        record["methods"]["ppcmi"]["seconds"] = 3600 * hours[record["variant"]]
    named = {name: result | {"experiment": name} for name in ("phantom_x", "comparison_x", "rate_accuracy")}
    for name in ("phantom_x", "comparison_x"):
        assert [record["variant"] for record in comparison_of([named[name]])[0]["runs"]] == ["all"]
    assert comparison_of([named["rate_accuracy"], result]) == [named["rate_accuracy"]]
    page = tables.page([result, named["phantom_x"]])
    assert "took 3.0 hours of one run at a time. 1.0 of them were for" in page
    assert "on each phantom (`main`, `other-methods`, `all`), ours at 256 x 256" in page


def test_trials_of_rates_are_counted_where_records_tell_of_them(tmp_path: Path) -> None:
    made = plan(settings=TINY | {"baselines.methods": [POOLED], "baselines.learning_rates": [0.001, 0.002]})
    write_run(made, tmp_path, {"ppcmi": 0.0, POOLED: 0.0}, seconds={f"{POOLED} (rates tried)": 5400.0})
    result = collect("name", made, tmp_path, [], quiet)
    result["runs"][0]["methods"][POOLED]["learning_rate"] = 0.001
    assert Effort.of([result, result]) == Effort(training=120.0, trials=5400.0, untold=0)
    assert "other variants, took 1.5 hours. Two cores" in tables.page([result])
    # Who took the network over at the rate that it chose has nothing to tell of trials.
    given = copy.deepcopy(result)
    given["runs"][0]["settings"]["baselines"]["learning_rates"] = []
    given["runs"][0]["methods"][POOLED]["trial_seconds"] = 0.0
    assert Effort.of([given, result]).trials == 5400.0
    older = copy.deepcopy(result)
    for facts in older["runs"][0]["methods"].values():
        del facts["trial_seconds"]
    for known in ([older], [older, given], [given, older]):
        assert Effort.of(known) == Effort(training=120.0, trials=0.0, untold=1)
    assert "took 0.0 hours; of 1 with trials the records do not have it. Two cores" in tables.page([older])
    assert Effort.of([older, result]).untold == 0
