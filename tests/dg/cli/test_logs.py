"""`--log`: the history of every run in TensorBoard and in Weights & Biases, without a network."""

import importlib.util

import pytest
from synthetic_results import write_results

from disam_jax.dg.cli import logs
from disam_jax.dg.cli import main as cli
from disam_jax.dg.sweep.results_file import read_written


@pytest.fixture
def written(tmp_path):
    write_results(tmp_path / "runs")
    return read_written(tmp_path / "runs")


def logged(names, out, written, number):
    """The runs that were logged, and what was said of it."""
    records, said = list(written.records.values())[:number], []
    with logs.logging_to(names, out, said.append) as log:
        for record in records:
            log([record], written.header)
    return records, said


def test_tensorboard_has_the_numbers_of_the_results_file(tmp_path, written):
    pytest.importorskip("tensorboardX", reason='pip install -e ".[tensorboard]"')
    from tensorboardX.proto.event_pb2 import Event

    out = tmp_path / "out"
    records, said = logged(["tensorboard"], out, written, number=2)
    assert said == []
    folders = sorted((out / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == sorted(logs.run_name(each, written.header) for each in records)
    for record in records:
        (file,) = (out / "tensorboard" / logs.run_name(record, written.header)).iterdir()
        found = {}
        for content in events(file.read_bytes()):
            event = Event.FromString(content)
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        expected = {
            (name, step): value
            for step, values in logs.history(record, written.header).items()
            for name, value in values.items()
        }
        assert found.keys() == expected.keys()
        assert len(found) == len(written.header["steps"]) * 2 * 2 * 3
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-6)  # float32


def events(content):
    """The records of an event file: length, its checksum, content, its checksum."""
    place = 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        yield content[place + 12 : place + 12 + length]
        place += length + 16


def test_a_run_has_a_name_of_its_own_that_a_folder_can_have():
    header = {"data": {"domains": {"../a b": 1, "__a_b": 1}}}
    names = {
        logs.run_name({"method": "A+B", "target": target, "seed": seed, "candidate": 0}, header)
        for target in (0, 1)
        for seed in (0, 1)
    }
    assert len(names) == 4
    assert not any("/" in name or " " in name for name in names)


@pytest.mark.slow
def test_weights_and_biases_keeps_a_run_offline(tmp_path, written, monkeypatch, capfd):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "out").mkdir()
    _, said = logged(["wandb"], tmp_path / "out", written, number=1)
    assert said == []
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))
    assert capfd.readouterr().out == ""


def test_a_log_that_fails_is_one_line_and_ends_nothing_else(tmp_path, written):
    (tmp_path / "out").write_text("a file in the way")
    _, said = logged(["tensorboard"], tmp_path / "out", written, number=3)
    assert len(said) == 1
    assert said[0].startswith("--log tensorboard ends here, and training goes on: ")


@pytest.mark.parametrize("name", logs.LOGS)
def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, capsys, monkeypatch, name):
    _, package, how = logs.LOGS[name]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each, *rest: None if each == package else find(each, *rest))
    assert cli.main(["compare", "--log", name, "--out", str(tmp_path / "out")]) == 2
    message = f"disam-jax: error: --log {name} needs the package {package}, which is missing: {how}\n"
    assert capsys.readouterr().err == message
    assert not (tmp_path / "out").exists()
