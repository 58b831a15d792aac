"""The forecast: planted gains are found, noise is called noise, and what only tells data sets apart is caught."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.verdict import forecast as script
from disam_jax.dg.diagnosis import forecast as forecasts
from disam_jax.dg.diagnosis import reliability as held_out
from disam_jax.dg.diagnosis.forecast import Forecast, fit, load_forecasts
from disam_jax.dg.diagnosis.signals import Signals
from disam_jax.dg.diagnosis.table import GAINS, TEXTS, Table, read_tables
from disam_jax.dg.errors import InputError

K = len(Signals._fields)
NOTHING_FORETOLD = "These signals did not predict the gain on data sets that the model had not seen: expect"


def made_table(gain_of, data_sets=7, targets=4, regimes=("linear", "mlp"), seed=0):
    """Signals that differ between data sets and within; `gain_of(signals [K], data set, rng)` in points."""
    rng = np.random.default_rng(seed)
    rows, signals, gains = [], [], []
    for d in range(data_sets):
        of_data = rng.normal(size=K)
        for t in range(targets):
            for regime in regimes:
                one = of_data + rng.normal(size=K)
                rows.append((f"set {d}", regime, f"target {t}"))
                signals.append(one)
                gains.append(gain_of(one, d, rng))
    data, regime, target = zip(*rows, strict=True)
    return Table(data, regime, target, np.array(gains), np.full(len(gains), 0.3), np.array(signals))


def planted(signals, data_set, rng):
    return 0.5 + signals[2] + 0.4 * rng.normal()


def noise(signals, data_set, rng):
    return 0.5 + rng.normal()


@pytest.fixture(scope="module")
def of_planted():
    return fit(made_table(planted), permutations=49)


@pytest.fixture(scope="module")
def of_noise():
    return fit(made_table(noise), permutations=49)


def test_a_planted_gain_is_found(of_planted):
    assert of_planted.foretells
    for each in of_planted.reliability.values():
        assert each.measures.r2 > 0.6
        assert each.measures.rank_correlation > 0.7
        assert each.measures.right_signs > each.measures.constant_signs
        assert each.measures.error < 0.7 * each.measures.constant_error
        assert max(each.p.values()) <= 0.02
    # On a data set that was never seen, the forecast is as good as it says.
    fresh = made_table(planted, seed=1)
    signals = dict(zip(fresh.names, fresh.signals.T, strict=True))
    predicted = of_planted.predict(signals)
    assert np.abs(predicted.gain - fresh.gain).mean() < 0.5
    within = (predicted.low <= fresh.gain) & (fresh.gain <= predicted.high)
    assert 0.8 < within.mean() < 1.0
    assert not any(line.startswith(NOTHING_FORETOLD) for line in of_planted.sentences("DISAM"))


def test_noise_is_called_noise(of_noise):
    assert not of_noise.foretells
    found = of_noise.reliability["data set"]
    assert found.measures.r2 < 0.1
    assert found.p["r2"] > 0.05
    mean = made_table(noise).gain.mean()
    assert of_noise.sentences("DISAM")[0] == (
        f"{NOTHING_FORETOLD} {mean:+.1f} ± {found.constant_half_width:.1f} points whatever their values."
    )
    # Whatever they are.
    predicted = of_noise.predict({name: np.array([-3.0, 0.0, 3.0]) for name in Signals._fields})
    np.testing.assert_allclose(predicted.gain, mean)
    np.testing.assert_allclose(predicted.high - predicted.low, 2 * found.constant_half_width)


def test_a_signal_that_only_tells_data_sets_apart_is_caught():
    """It foretells other targets of a data set that is known, and nothing of another one."""
    gain_of_set = np.random.default_rng(5).normal(size=7)
    table = made_table(lambda signals, data_set, rng: 2.0 * gain_of_set[data_set] + 0.2 * rng.normal())
    mark = np.random.default_rng(6).normal(size=7)[table.data_sets]
    table.signals[:] = mark[:, None] + 0.05 * table.signals
    table.signals[:, 1] = (mark**2)[:]
    table.signals[:, 2] = (mark**3)[:]
    found = fit(table, permutations=49)
    assert found.reliability["target"].measures.r2 > 0.3
    assert found.reliability["data set"].measures.r2 < 0.1
    assert not found.foretells


@pytest.mark.slow
def test_permutations_call_as_much_noise_a_finding_as_alpha_allows():
    """Gains and signals both come in data sets; rows that are permuted one by one would find too much."""
    clustered = lambda signals, data_set, rng: means[data_set] + 0.3 * rng.normal()
    findings = 0
    for seed in range(40):
        means = np.random.default_rng(100 + seed).normal(size=6)
        table = made_table(clustered, data_sets=6, targets=3, regimes=("mlp",), seed=seed)
        findings += held_out.reliability(table, table.data_sets, permutations=19, seed=seed).p["r2"] <= 0.05
    # 2 expected; 6 or more have a probability of 1.4 %.
    assert findings < 6


def test_ridge_is_that_of_scikit_learn():
    table = made_table(planted)
    center, scale, maps = held_out.ridge(table.signals)
    known = (table.signals - center) / scale
    for place in (0, 10, 25):
        reference = Ridge(alpha=held_out.STRENGTHS[place]).fit(known, table.gain)
        np.testing.assert_allclose(maps[place] @ (table.gain - table.gain.mean()), reference.coef_, rtol=1e-8)
    assert (maps[-1] == 0).all()


def test_a_group_is_forecast_by_a_pipeline_that_was_fitted_on_the_others():
    table = made_table(planted)
    fold = held_out.folds(table.signals, table.data_sets)[2]
    others = table.data_sets != 2
    forecasts = fold.outer(table.gain)
    for place in (0, 10, 25):
        pipeline = make_pipeline(StandardScaler(), Ridge(alpha=held_out.STRENGTHS[place]))
        pipeline.fit(table.signals[others], table.gain[others])
        known = table.signals[others]
        asked = np.clip(table.signals[~others], known.min(0), known.max(0))
        np.testing.assert_allclose(forecasts[place], pipeline.predict(asked), rtol=1e-8)


def test_no_group_is_forecast_by_what_has_seen_it():
    """Whatever the gains of a group are, its own forecasts stay."""
    table = made_table(planted)
    found = held_out.folds(table.signals, table.data_sets)
    before, constant = held_out.out_of_sample(found, table.gain)
    mine = table.data_sets == 3
    after, constant_after = held_out.out_of_sample(found, np.where(mine, 1e6, table.gain))
    np.testing.assert_array_equal(after[mine], before[mine])
    np.testing.assert_array_equal(constant_after[mine], constant[mine])
    assert (after[~mine] != before[~mine]).all()


def test_permuted_gains_keep_their_clusters():
    table = made_table(planted)
    gain = held_out.permuted(table.gain, table.data_sets, table.targets, np.random.default_rng(0))
    means = lambda gain: np.sort([gain[table.data_sets == each].mean() for each in range(7)])
    np.testing.assert_allclose(means(gain), means(table.gain))
    assert (gain != table.gain).all()


def test_a_constant_signal_does_no_harm():
    table = made_table(planted)
    table.signals[:, 0] = 0.1
    found = fit(table, permutations=39)
    assert abs(found.coefficients[0]) < 1e-12
    assert found.foretells


def test_gains_that_are_all_equal_are_their_mean():
    found = fit(made_table(lambda *_: 0.25), permutations=39)
    assert not found.foretells
    predicted = found.predict({name: np.zeros(2) for name in Signals._fields})
    for each in predicted:
        np.testing.assert_allclose(each, 0.25)


def test_too_few_data_sets_are_refused():
    with pytest.raises(InputError, match=r"the table has 2 data sets, .* give at least 3"):
        fit(made_table(planted, data_sets=2))


def test_signals_beyond_the_table_are_named(of_planted):
    signals = {name: of_planted.center[place : place + 1] for place, name in enumerate(of_planted.names)}
    assert of_planted.beyond(signals) == ()
    assert of_planted.beyond({**signals, "gradient_noise": np.array([1e3])}) == ("gradient_noise",)
    # They are taken as the nearest value that was seen.
    far = of_planted.predict({**signals, "gradient_cosine": np.array([1e3])})
    edge = of_planted.predict({**signals, "gradient_cosine": of_planted.highest[2:3]})
    assert far.gain == edge.gain
    with pytest.raises(ValueError, match="got none called loss_spread"):
        of_planted.predict({})


@pytest.mark.parametrize("name", ["of_planted", "of_noise"])
def test_a_record_holds_all_of_a_forecast(name, request):
    forecast = request.getfixturevalue(name)
    for strength in (3.0, math.inf):
        record = json.loads(json.dumps(replace(forecast, strength=strength).record(), allow_nan=False))
        again = Forecast.from_record(record)
        assert again.record() == record
        assert again.strength == strength
    signals = {each: np.linspace(-1, 1, 3) for each in Signals._fields}
    np.testing.assert_allclose(again.predict(signals), forecast.predict(signals), rtol=1e-8)
    assert again.sentences("DISAM") == forecast.sentences("DISAM")


def test_the_forecasts_of_the_package_are_about_the_signals_that_there_are():
    for forecast in load_forecasts().values():
        assert forecast.names == Signals._fields
        assert {"version", "date", "data_sets", "regimes", "targets", "runs"} <= forecast.provenance.keys()
        assert all(math.isfinite(each) for each in forecast.coefficients)


# Tables in files, and the script.


def csv_of(table, method="DISAM-std", columns=(*TEXTS, *GAINS, *Signals._fields)):
    lines = [",".join(columns)]
    for place in range(len(table.gain)):
        values = {
            "data": table.data[place],
            "regime": table.regime[place],
            "target": table.target[place],
            "method": method,
            "gain": table.gain[place],
            "gain_se": table.gain_se[place],
            **dict(zip(table.names, table.signals[place], strict=True)),
        }
        lines.append(",".join(str(values.get(name, "other")) for name in columns))
    return "\n".join(lines) + "\n"


def test_a_table_of_a_file_is_what_was_written(tmp_path):
    table = made_table(planted)
    # Other columns, in another order.
    columns = ("note", *reversed((*TEXTS, *GAINS, *Signals._fields)))
    (tmp_path / "one.csv").write_text(csv_of(table, columns=columns))
    (tmp_path / "two.csv").write_text(csv_of(table, "DISAM"))
    found = read_tables([tmp_path / "one.csv", tmp_path / "two.csv"])
    assert list(found) == ["DISAM-std", "DISAM"]
    for each in found.values():
        np.testing.assert_array_equal(each.signals, table.signals)
        np.testing.assert_array_equal(each.gain, table.gain)
        assert (each.data, each.regime, each.target) == (table.data, table.regime, table.target)


HEADER = ",".join((*TEXTS, *GAINS, *Signals._fields))
ROW = "a,mlp,x,DISAM,1,0.1" + ",0.5" * K


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no row under its header"),
        (HEADER, "has no row under its header"),
        (HEADER.replace("gain_se,", "") + "\n" + ROW, "has no column gain_se"),
        (HEADER.replace("gradient_noise", "noise") + "\n" + ROW, "has no column gradient_noise"),
        (f"{HEADER}\n{ROW}\n{ROW}", "line 3: 'a', 'mlp', 'x', 'DISAM' appears twice"),
        (f"{HEADER}\n{ROW},1", f"line 2 has {7 + K} values, but there are {6 + K} columns"),
        (f"{HEADER}\n{ROW.replace('0.1', 'nan')}", "line 2: gain_se must be a finite number, got 'nan'"),
        (f"{HEADER}\n{ROW.replace(',1,', ',,')}", "line 2: gain must be a finite number, got ''"),
        (f"{HEADER}\n{ROW.replace('0.5', 'many')}", "line 2: loss_spread must be a finite number, got 'many'"),
        (b"\xff\xfe\n", "is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_tables([path])
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_the_script_writes_what_the_command_reads(tmp_path, capsys):
    (tmp_path / "table.csv").write_text(csv_of(made_table(planted)))
    out = tmp_path / "forecast.json"
    script.main([str(tmp_path / "table.csv"), "--permutations", "39", "--runs", "560", "--out", str(out)])
    found = load_forecasts(out)
    assert list(found) == ["DISAM-std"]
    of = found["DISAM-std"].provenance
    assert (of["runs"], of["targets"], of["rows"], of["regimes"]) == (560, 28, 56, ["linear", "mlp"])
    printed = capsys.readouterr().out
    assert "56 gains of 28 targets in 7 data sets" in printed
    assert "| gradient_cosine | +" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "cannot read missing.csv"),
        (["missing.csv", "--permutations", "19"], "--permutations must be at least 20, got 19"),
    ],
)
def test_the_script_refuses_what_it_cannot_use(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        script.main(arguments)
    assert message in capsys.readouterr().err


def test_a_file_of_another_schema_is_refused(tmp_path):
    (tmp_path / "forecast.json").write_text(json.dumps({"schema": forecasts.SCHEMA + 1, "forecasts": {}}))
    with pytest.raises(InputError, match="has schema 2, this version reads 1"):
        load_forecasts(tmp_path / "forecast.json")
