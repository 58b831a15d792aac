"""The command diagnose: what it takes, what it refuses, what it prints and writes."""

import csv
import dataclasses
import json
import re
import shlex

import numpy as np
import pytest

from disam_jax.dg.cli import diagnose as command
from disam_jax.dg.cli import main as cli
from disam_jax.dg.cli.options import Compare, Diagnose, TrainingOptions
from disam_jax.dg.diagnosis import forecast as forecasts
from disam_jax.dg.diagnosis.forecast import Forecast
from disam_jax.dg.diagnosis.reliability import Measures, Reliability
from disam_jax.dg.diagnosis.signals import Signals
from disam_jax.dg.diagnosis.trial import Diagnosis

K = len(Signals._fields)


@pytest.fixture
def sites(tmp_path):
    """An .npz file of four domains, one of which is small."""
    rng = np.random.default_rng(0)
    domain = np.repeat(np.arange(4), (20, 20, 20, 6))
    x = rng.normal(0.3 * domain[:, None], 1.0, (len(domain), 5))
    np.savez(tmp_path / "sites.npz", x=x, y=np.arange(len(domain)) % 2, domain=domain)
    return tmp_path / "sites.npz"


def forecast_with(r2=0.5, p=0.001, coefficient=1.0):
    """A model of the first signal alone, off by half a point."""
    measures = Measures(r2, 0.6, 0.8, 0.4, 0.6, 0.9)
    each = Reliability(6, measures, {"r2": p, "rank_correlation": p, "right_signs": p, "error": p}, 0.5, 2.0)
    return Forecast(
        Signals._fields,
        np.zeros(K),
        np.ones(K),
        np.eye(K)[0] * coefficient,
        0.25,
        1.0,
        np.full(K, -10.0),
        np.full(K, 10.0),
        {"data set": each, "target": each},
        {"regimes": ["mlp"]},
    )


def refused(capsys, *arguments):
    """The one line that says why."""
    assert cli.main(["diagnose", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("disam-jax: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_options_of_data_and_training_are_those_of_compare():
    shared = {each.name for each in dataclasses.fields(TrainingOptions)}
    of_both = {each.name for each in dataclasses.fields(Diagnose)} & {each.name for each in dataclasses.fields(Compare)}
    assert of_both - shared == {"method", "seeds", "out"}
    for name in shared:
        assert getattr(Diagnose(), name) == getattr(Compare(), name), name


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--method", "erm"], "--method erm has no signals: they tell whether DISAM gains over SAM"),
        (["--method", "disam,sam"], "--method disam,sam has no signals"),
        (["--seeds", "1"], "--seeds must be at least 2, got 1"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--rho", "-1"], "--rho must be finite and not negative, got -1"),
        (["--learning-rate", "nan"], "--learning-rate must be positive and finite"),
        (["--memory", "0"], "--memory must be positive and finite"),
        (["--target", "moon"], "unknown --target moon"),
        (["--rank", "8"], "--rank is for pretrained models"),
        (["--train-from", "head"], "--train-from is for pretrained models"),
        (["--norm", "batch"], "--model mlp has no norm"),
        (["--augment"], "--augment is for pixels"),
        (["--cache", "somewhere"], "--cache is for pretrained models"),
        (["--data", "nowhere"], "nowhere is neither a known name nor a folder"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_refused(tmp_path, capsys, arguments, reason):
    assert reason in refused(capsys, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--penalty", "--lam", "--candidates", "--grid", "--select", "--open-class"])
def test_an_option_that_makes_no_sense_here_does_not_parse(capsys, option):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["diagnose", option, "1"])
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ((20, 20), "sites has 2 domains, so that a held-out one leaves 1 to train on"),
        ((20, 20, 2), "domain 2 has 1 training example"),
    ],
    ids=["one source", "no two halves"],
)
def test_data_without_signals_is_refused(tmp_path, capsys, counts, reason):
    domain = np.repeat(np.arange(len(counts)), counts)
    np.savez(tmp_path / "sites.npz", x=np.ones((len(domain), 2)), y=np.arange(len(domain)) % 2, domain=domain)
    assert reason in refused(capsys, "--data", tmp_path / "sites.npz", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("signals.csv", "mine"), ("diagnosis.json", "{}"), ("diagnosis.json", "no JSON")]
)
def test_a_file_of_the_user_is_not_written_over(tmp_path, sites, capsys, name, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    assert name in refused(capsys, "--data", sites, "--out", out)
    assert (out / name).read_text() == content


@pytest.mark.slow
def test_a_table_from_end_to_end(tmp_path, sites, capsys, monkeypatch):
    monkeypatch.setattr(forecasts, "own_forecasts", lambda: {"DISAM-std": forecast_with()})
    out = tmp_path / "out"
    arguments = ["--data", str(sites), "--model", "linear", "--target", "0", "3", "--seeds", "2", "--steps", "40"]
    for _ in range(2):
        # The second time, its own files make room.
        assert cli.main(["diagnose", *arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "sites: 4 trials of 4 plain steps, 16 steps in all; held out: 0, 3; 2 seeds" in printed.err.splitlines()[0]
    assert max(map(len, (line for line in printed.out.splitlines() if "disam-jax compare" not in line))) <= 80
    assert sorted(path.name for path in out.iterdir()) == ["diagnosis.json", "signals.csv"]
    record = json.loads((out / "diagnosis.json").read_text())
    with (out / "signals.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["data", "regime", "target", "method", *Signals._fields]
    assert [(row["data"], row["regime"], row["target"], row["method"]) for row in rows] == [
        ("sites", "linear", "0", "DISAM-std"),
        ("sites", "linear", "3", "DISAM-std"),
    ]
    for name in Signals._fields:
        np.testing.assert_allclose(record["signals"][name]["mean"], [float(row[name]) for row in rows])
        np.testing.assert_allclose(np.mean(record["signals"][name]["by_seed"], 0), record["signals"][name]["mean"])
        assert re.search(rf"{name.replace('_', ' ')} .*±.*±", printed.out), name
    assert record["setting"]["model"] == "linear"
    assert record["data"]["domains"] == {"0": 20, "1": 20, "2": 20, "3": 6}
    assert "Domain 3 has 5 training examples, fewer than the 16" in " ".join(printed.out.split())
    # The forecast is in both.
    gains = 0.25 + np.array(record["signals"]["loss_spread"]["mean"])
    np.testing.assert_allclose(record["forecast"]["gain"], gains)
    for gain in gains:
        assert f"{gain:+.1f} [{gain - 0.5:+.1f}, {gain + 0.5:+.1f}]" in printed.out
    assert "not fitted on this training (linear), but on: mlp" in " ".join(printed.out.split())


def found_with(spreads):
    values = {name: np.tile(np.asarray(spreads, float), (2, 1)) for name in Signals._fields}
    return Diagnosis(tuple("abc"[: len(spreads)]), (0, 1), 40, values)


@pytest.mark.parametrize(
    ("forecast", "spreads", "first", "some"),
    [
        (None, [0.0], "There is no forecast yet", ""),
        (
            forecast_with(),
            [0.0, 1.0, -2.0],
            "Of 3 held-out domains, DISAM should gain over SAM on 1",
            "80 % had",
        ),
        (forecast_with(), [99.0], "Of 1 held-out domains, DISAM", "Outside the range of the data that the model"),
        (forecast_with(r2=-0.1), [0.0], "These signals did not predict the gain on data sets that the", ""),
        (forecast_with(p=0.2), [99.0], "These signals did not predict the gain", "expect +0.2 ± 2.0 points"),
    ],
)
def test_what_the_signals_foretell_is_said_in_words(forecast, spreads, first, some):
    lines = command.meaning(found_with(spreads), "DISAM", "mlp", forecast)
    assert lines[0].startswith(first)
    assert some in " ".join(lines)


def test_a_forecast_that_foretells_nothing_is_the_same_for_all():
    table = command.signals_table(found_with([0.0, 5.0]), "sites", "DISAM", forecast_with(p=0.5))
    assert [row[-1].text for row in table.rows] == ["+0.2 [-1.8, +2.2]"] * 2
    assert command.signals_table(found_with([0.0]), "sites", "DISAM", None).columns[-1] == "source accuracy"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "my images", "--target", "art", "a b", "--model", "conv", "--augment", "--steps", "30"],
        ["--model", "vit", "--checkpoint", "some/repo", "--peft", "probe", "--no-cache-features", "--rho", "0.2"],
        ["--model", "efficientnet_lite0", "--train-from", "head", "--cache", "a folder"],
    ],
    ids=lambda arguments: " ".join(arguments[:4]),
)
def test_the_next_command_trains_on_the_same(arguments):
    options = cli.parse(["diagnose", *arguments, "--method", "disam"])
    assert isinstance(options, Diagnose)
    again = cli.parse(shlex.split(command.next_command(options, "DISAM"))[1:])
    assert isinstance(again, Compare)
    assert again.method == ("sam", "disam")
    for each in dataclasses.fields(TrainingOptions):
        assert getattr(again, each.name) == getattr(options, each.name), each.name


def test_an_interruption_promises_nothing_that_is_not_kept(sites, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_diagnose", interrupted)
    assert cli.main(["diagnose", "--data", str(sites)]) == 130
    assert capsys.readouterr().err == "disam-jax: interrupted\n"
