"""Tests that every flag of every command has the effect stated in tests/flag_effects.py, or is rejected."""

import dataclasses
import functools
import importlib
import inspect
import json
import pathlib
import shutil

import flag_effects
import numpy as np
import pytest
from flag_effects import DATA, METRICS, OUTPUT, PLAN, REFUSAL, SHARED, SPEED, STATE
from flag_runs import (
    BASES,
    COMMANDS,
    MAINS,
    SETUP,
    Places,
    Started,
    configured,
    loaded,
    made,
    printed,
    refused,
    started,
    written,
)
from results import result

import data
from data import cifar10
from experiments import classify
from experiments.cli import options
from experiments.lecture import __main__ as lecture
from experiments.lecture import topic
from experiments.setup import generation

TABLES = {command: getattr(flag_effects, command.upper()) for command in COMMANDS}
ROWS = [
    pytest.param(command, flag, marks=[pytest.mark.slow] if row.slow else [], id=f"{command}-{flag}")
    for command, table in TABLES.items()
    for flag, row in table.items()
]
TRAINED = [flag for flag, row in TABLES["classify"].items() if row.alters in (STATE, SPEED)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_row(command):
    assert {field.name for field in dataclasses.fields(COMMANDS[command])} == TABLES[command].keys()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders and files; mnist5k and cifar10 are replaced by small data sets."""
    load = data.load

    def small(name, data_dir=None, **how):
        return made(name) if name in ("mnist5k", "cifar10") else load(name, data_dir, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", small)
        patch.setattr(cifar10, "RECORDS", 8)
        patch.setattr("experiments.cli.compilation_cache.start_cache", lambda: None)
        generation._load.cache_clear()
        yield Places(tmp_path_factory.mktemp("places"))
    generation._load.cache_clear()


@pytest.mark.parametrize("command, flag", ROWS)
def test_a_flag_has_the_effect_in_its_row(command, flag, places, capsys, monkeypatch, request, tmp_path):
    row = TABLES[command][flag]
    kind, base = row.alters, BASES[command] | row.beside
    if kind == SHARED:  # The same line in all training commands; its effect is tested with classify.
        source = inspect.getsource(MAINS[command])
        assert row.value in source and row.value in inspect.getsource(classify.main)
        return
    places |= {"W": str(tmp_path / "w"), "OTHER": str(tmp_path / "other"), "FIGURE": str(tmp_path / "f.png")}
    one, two = (configured(command, places, base, changed) for changed in ({}, {flag: row.value}))
    assert getattr(one, flag) != getattr(two, flag)
    if kind == REFUSAL:
        assert row.why in refused(command, two, places, capsys, monkeypatch)
        return
    if kind == OUTPUT and command == "classify":
        start = request.getfixturevalue("start")
        by_command(start, one, two, flag)
        return
    if command in SETUP:
        first, second = outcomes(command, one, two, kind)
    else:
        first, second = (written(command, config, places, capsys, monkeypatch) for config in (one, two))
        if kind == SPEED:  # For evaluate: (batch sizes, metrics).
            assert first[1]["loss"] == pytest.approx(second[1]["loss"], rel=1e-5)
    assert first != second


SAME = [pytest.param(command, marks=[pytest.mark.slow] if command != "classify" else []) for command in SETUP]


@pytest.mark.parametrize("command", SAME)
def test_the_same_flags_give_the_same_program(command, places):
    """Otherwise a difference would be meaningless."""
    config = configured(command, places, BASES[command])
    assert Started(command, config).program() == Started(command, config).program()


PRINTED = ("evaluate", "predict", "sample", "filters", "prepare", "summary", "sweep", "export", "import_weights")
PRINTED += ("reproduce", "lecture")


@pytest.mark.slow
@pytest.mark.parametrize("command", PRINTED)
def test_the_same_flags_print_and_write_the_same(command, places, capsys, monkeypatch, tmp_path):
    places |= {"W": str(tmp_path / "w")}
    config = configured(command, places, BASES[command])
    assert len({repr(printed(command, config, places, capsys, monkeypatch)) for _ in range(2)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("flag", TRAINED)
def test_a_flag_alters_the_trained_parameters_or_only_speed(flag, places):
    row = TABLES["classify"][flag]
    runs = [
        started("classify", configured("classify", places, BASES["classify"], row.beside, changed))
        for changed in ({}, {flag: row.value})
    ]
    if row.alters == STATE:
        assert runs[0].state() != runs[1].state()
    else:
        for name, leaf in runs[0].params.items():
            np.testing.assert_allclose(runs[1].params[name], leaf, atol=1e-5, err_msg=name)


def outcomes(command, one, two, kind):
    """The outcomes of two configs that `kind` compares."""
    if kind == DATA:
        return [loaded(command, config) for config in (one, two)]
    ask = {METRICS: Started.metrics, PLAN: Started.plan}.get(kind, Started.program)
    return [ask(started(command, config)) for config in (one, two)]


def by_command(start, one, two, flag):
    """For classify's flags about files: starts both runs as a user does, with the real data."""
    found = []
    for config in (one, two):
        result(start("classify", *options.flag_lines(config)))
        place = pathlib.Path(config.workdir)
        found.append(sorted(path.name for path in place.rglob("*") if path.parent.name in ("checkpoints", place.name)))
        if flag in ("keep", "dry_run", "profile_steps"):  # A new folder for each run.
            shutil.rmtree(place, ignore_errors=True)
    if flag == "workdir":
        assert pathlib.Path(one.workdir, "run.json").exists() and pathlib.Path(two.workdir, "run.json").exists()
    else:
        assert found[0] != found[1], found


@pytest.mark.parametrize("command, given, why", flag_effects.REFUSED)
def test_a_flag_without_effect_is_refused(command, given, why, places, capsys, monkeypatch):
    config = configured(command, places, BASES[command], given)
    assert why in refused(command, config, places, capsys, monkeypatch)


@pytest.mark.parametrize("name", flag_effects.TOPICS)
def test_every_flag_of_a_topic_has_two_values(name):
    found = topic.flags_of(getattr(importlib.import_module(f"experiments.lecture.{name}"), "OPTIONS", None))
    assert name in lecture.TOPICS and found.keys() == flag_effects.TOPICS[name].keys()


# A run of plain_vs_residual compiles four deep networks, which takes minutes.
TOPIC_FLAGS = [(name, flag) for name, values in flag_effects.TOPICS.items() for flag in values]
TOPIC_FLAGS = [(name, flag) for name, flag in TOPIC_FLAGS if name != "plain_vs_residual"]


@pytest.fixture(scope="module")
def topic_result(places, tmp_path_factory):
    """topic_result(TOPIC, flags as pairs) runs a topic on the small data sets and returns its numbers and tables."""

    @functools.cache
    def run(name, given):
        module, place = importlib.import_module(f"experiments.lecture.{name}"), tmp_path_factory.mktemp("topic")
        assert topic.run(name, module.experiment, workdir=str(place), options=dict(given)) == 0
        found = json.loads((place / "lesson.json").read_text())
        return [found["numbers"], found["tables"]]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name, flag", TOPIC_FLAGS)
def test_a_flag_of_a_topic_alters_its_numbers(name, flag, topic_result):
    small = {option: one for option, (one, _) in flag_effects.TOPICS[name].items()}
    other = small | {flag: flag_effects.TOPICS[name][flag][1]}
    assert topic_result(name, tuple(small.items())) != topic_result(name, tuple(other.items()))
