"""The folder of results: only files of ours are written over, moved or removed, and a kill leaves nothing behind."""

import json
import os
import subprocess
import sys

import pytest
from synthetic_results import make_plan, make_results, write_results

from disam_jax.dg.cli import compare
from disam_jax.dg.cli import main as cli
from disam_jax.dg.errors import InputError
from disam_jax.dg.report import write
from disam_jax.dg.sweep import results_file, results_folder


def names(out):
    return sorted(os.listdir(out))


# Whole or not at all.


def test_files_are_written_whole_and_replace_older_ones(tmp_path):
    out = tmp_path / "deep" / "out"
    results_folder.write_files(out, {"a": b"1", "b": b"2"})
    results_folder.write_files(out, {"a": b"3"})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"a": b"3", "b": b"2"}


def test_a_failing_write_leaves_the_older_files(tmp_path, monkeypatch):
    results_folder.write_files(tmp_path, {"a": b"1", "b": b"1"})

    def full(path, content):
        if path.name == "b":
            raise OSError(28, "No space left on device")
        return path.open("wb").close()

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
        results_folder.write_files(tmp_path, {"a": b"2", "b": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"1"}


WRITER = """
import sys
from pathlib import Path
from disam_jax.dg.unfinished import unfinished_folder
with unfinished_folder(Path(sys.argv[1])) as unfinished:
    (unfinished / "table.md").write_bytes(b"half")
    print("begun", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_what_a_process_is_writing_is_removed_once_it_was_killed_and_not_before(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        (unfinished,) = tmp_path.iterdir()
        results_folder.write_files(tmp_path, {"a": b"1"})
        assert (unfinished / "table.md").read_bytes() == b"half"
        process.kill()
    results_folder.write_files(tmp_path, {"a": b"2"})
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("begin", ["a report", "a sweep"])
def test_every_way_to_begin_removes_what_a_killed_process_left(tmp_path, begin):
    left = tmp_path / ".unfinished-abc"
    left.mkdir()
    (left / "figure.png").write_bytes(b"half")
    if begin == "a sweep":
        write_results(tmp_path)
    else:
        results_folder.write_report(tmp_path, {"table.md": b"1"}, "last")
    assert not left.exists()


def test_a_file_or_a_link_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (tmp_path / ".unfinished-note").write_text("mine")
    (tmp_path / ".unfinished-link").symlink_to("elsewhere")
    results_folder.write_files(tmp_path, {"a": b"1"})
    assert names(tmp_path) == [".unfinished-link", ".unfinished-note", "a", "elsewhere"]
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"


# What may be written over.


def test_figures_of_an_earlier_report_do_not_stay_beside_the_tables_of_another(tmp_path):
    results_folder.write_report(tmp_path, {"table.md": b"1", "usable_range.png": b"1", "record.json": b"1"}, "last")
    (tmp_path / "sensitivity.pdf").write_bytes(b"mine, from elsewhere")
    with pytest.raises(InputError, match=r"sensitivity.pdf is not from disam-jax"):
        results_folder.write_report(tmp_path, {"table.md": b"2"}, "last")
    (tmp_path / "sensitivity.pdf").unlink()
    (tmp_path / "notes.png").write_bytes(b"mine")
    results_folder.write_report(tmp_path, {"table.md": b"2"}, "last")
    # The record is of the training, which a report does not repeat.
    assert names(tmp_path) == ["notes.png", "record.json", "report.json", "table.md"]
    assert (tmp_path / "table.md").read_bytes() == b"2"


@pytest.mark.slow
def test_every_file_of_a_report_can_be_told_from_those_of_others():
    results = make_results(seeds=2, points=2)
    summaries = {each: write.summarise(results, each) for each in write.CRITERIA}
    drawn = write.report_figures(summaries["last"], ())
    cost = {"ERM": {"flops": 1.0, "seconds_per_run": 1.0}}
    made = {*write.text_files(results, summaries, "last", (), cost), *(f"{name}.png" for name in drawn)}
    assert made <= {*results_folder.NAMES}
    assert all("/" not in name for name in results_folder.NAMES)


@pytest.mark.parametrize(
    "name", ["table.md", "report.html", "results.json", "report.json", "accuracy.tex", "select-oracle"]
)
@pytest.mark.parametrize("content", ["mine", '{"writer": "me"}'])
def test_a_file_of_the_user_is_refused_before_any_work(tmp_path, name, content, capsys, monkeypatch):
    monkeypatch.setattr(compare, "read_data", pytest.fail)
    (tmp_path / name).write_text(content)
    for command in (["compare", "--overwrite"], ["sweep"]):
        assert cli.main([*command, "--out", str(tmp_path)]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert name in printed
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == content


def test_other_files_of_the_user_are_no_hindrance(tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    results_folder.check_out(tmp_path)
    write_results(tmp_path)
    with results_file.open_store(tmp_path, make_plan(steps=6)[0], overwrite=True):
        pass
    assert names(tmp_path) == ["earlier-1", "notes.md", "report.json", "results.jsonl"]


def test_the_report_of_a_version_without_manifests_is_known(tmp_path):
    found = {"schema": 2, "header": {}, "criteria": {}, "tables": {}, "criterion": "oracle"}
    (tmp_path / "results.json").write_text(json.dumps(found))
    (tmp_path / "table.md").write_text("# Title")
    results_folder.check_out(tmp_path)
    assert results_folder.read_manifest(tmp_path) == ("oracle", ("table.md", "results.json"))


# Whether there can be a folder.


def file_in_the_way(root):
    (root / "x").write_text("mine")
    return root / "x", "x is not a folder"


def under_a_file(root):
    (root / "x").write_text("mine")
    return root / "x" / "y", "x is not a folder"


def link_to_a_file(root):
    (root / "x").write_text("mine")
    (root / "link").symlink_to("x")
    return root / "link", "link is not a folder"


def link_to_nothing(root):
    (root / "link").symlink_to("nothing")
    return root / "link", "link is a link to nothing"


def link_to_itself(root):
    (root / "link").symlink_to("link")
    return root / "link", "levels of symbolic links"


def pipe(root):
    os.mkfifo(root / "pipe")
    return root / "pipe", "pipe is not a folder"


def long_name(root):
    return root / ("x" * 256), "File name too long"


def long_path(root):
    return root / "/".join(["x" * 200] * 30), "File name too long"


def device(root):
    del root
    return "/dev/null", "/dev/null is not a folder"


PLACES = [
    file_in_the_way,
    under_a_file,
    link_to_a_file,
    link_to_nothing,
    link_to_itself,
    pipe,
    long_name,
    long_path,
    device,
]


@pytest.mark.parametrize("make", PLACES)
@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_an_out_that_can_be_no_folder_is_one_line(tmp_path, capsys, make, command, monkeypatch):
    monkeypatch.setattr(compare, "read_data", pytest.fail)
    out, reason = make(tmp_path)
    before = names(tmp_path)
    assert cli.main([command, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("disam-jax: error: cannot write to ")
    assert printed.err.count("\n") == 1
    assert reason in printed.err
    assert names(tmp_path) == before


@pytest.mark.parametrize("make", PLACES)
def test_a_report_of_what_is_no_folder_is_one_line(tmp_path, capsys, make):
    out, _ = make(tmp_path)
    assert cli.main(["report", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("disam-jax: error: cannot read ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("argument", ["a\0b", "a\udcff"], ids=["a zero byte", "not UTF-8"])
@pytest.mark.parametrize("option", ["--out", "--data", "--target"])
def test_what_cannot_be_written_down_is_refused(tmp_path, capsys, monkeypatch, option, argument):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", option, argument]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "an argument" in printed
    assert names(tmp_path) == []


# Which runs are reported.


@pytest.fixture
def quick(monkeypatch):
    """Reports without what takes long: the figures."""
    monkeypatch.setattr(write, "report_figures", lambda *_: {})


def reported(out):
    return json.loads((out / "results.json").read_text())["criterion"]


@pytest.mark.usefixtures("quick")
def test_a_report_keeps_to_what_the_folder_was_made_for(tmp_path, capsys):
    write_results(tmp_path, select="last", seeds=3)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert reported(tmp_path) == "last"
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    # Another one stands beside it.
    assert cli.main(["report", "--select", "oracle", str(tmp_path)]) == 0
    assert f"written to {tmp_path / 'select-oracle'}" in "".join(capsys.readouterr().out.split("\n"))
    assert reported(tmp_path / "select-oracle") == "oracle"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert cli.main(["report", "--out", str(tmp_path), "--select", "last"]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("arguments", [[], ["a", "--out", "b"]])
def test_a_report_takes_one_folder(capsys, arguments):
    assert cli.main(["report", *arguments]) == 2
    assert "write disam-jax report DIR" in capsys.readouterr().err
