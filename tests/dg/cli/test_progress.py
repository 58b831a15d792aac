"""Progress: a bar on a terminal, plain lines in a file, with the time that is left."""

import io
import re
import sys
import time

import pytest

from disam_jax.dg import progress as times
from disam_jax.dg.cli import main as cli
from disam_jax.dg.cli import progress
from disam_jax.dg.runners import in_memory as program
from disam_jax.dg.sweep import results_file


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def ticking(*seconds):
    left = iter(seconds)
    return lambda: next(left)


def test_the_time_left_counts_compilation():
    """Half of the runs took 60 s, whatever part of it was compilation: so will the other half."""
    left = times.TimeLeft(0, 20, clock=ticking(100.0, 150.0, 160.0, 200.0))
    assert left.text(0) == ""
    assert left.text(10) == "about 1 min left"
    assert left.text(20) == ""


def test_runs_of_an_earlier_start_took_no_time_of_this_one():
    left = times.TimeLeft(90, 100, clock=ticking(0.0, 5.0))
    assert left.text(95) == "about 5 s left"


def test_a_line_is_printed_now_and_then_and_says_what_is_left():
    lines = []
    show = progress.some_lines(lines.append, every=10.0, clock=ticking(0, 0, 1, 11, 11, 12, 22, 22, 22, 40, 40))
    show("reading images", 0, 100)
    show("reading images", 50, 100)
    show("reading images", 55, 100)
    show("training", 1, 8)
    show("training", 2, 8)
    assert lines == [
        "reading images: 50 of 100, about 11 s left",
        "training: 1 of 8",
        "training: 2 of 8, about 2 min left",
    ]


@pytest.mark.parametrize("stream", [None, Full()], ids=["closed", "full"])
def test_training_goes_on_where_nobody_can_be_told(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress() as (show, say):
        show("training", 1, 2)
        say("a line")


def test_a_line_has_no_character_that_controls_a_terminal(capsys):
    progress.say("a\x1b[31m\nb\r\u202ec é")
    assert capsys.readouterr().err == "disam-jax: a\\x1b[31m\\nb\\r\\u202ec é\n"


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress() as (show, say):
        show("training [bold]a", 1, 4)
        say("not on a terminal")
    assert "training [bold]a" in terminal.getvalue()
    assert "not on a terminal" not in terminal.getvalue()


@pytest.mark.slow
def test_a_log_says_at_the_start_what_is_run_and_has_a_line_for_each_chunk(tmp_path, capsys):
    arguments = ["compare", "--method", "erm", "sam", "--seeds", "2", "--steps", "2", "--target", "clean", "noise"]
    arguments += ["--runs-at-once", "2", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    first, *others = [line for line in capsys.readouterr().err.splitlines() if "compiling" not in line]
    assert first == "disam-jax: digits: 8 runs, of ERM, SAM; targets clean, noise; 2 seeds"
    done = [re.match(r"disam-jax: (\d) of 8 runs are finished, the last of (ERM|SAM)", line) for line in others]
    chunks = [found.groups() for found in done if found]
    assert [name for _, name in chunks] == ["ERM", "ERM", "SAM", "SAM"]
    assert [int(number) for number, _ in chunks] == [2, 4, 6, 8]
    assert all(re.search(r", about .* left$", line) for line in others[:-1])
    # Nothing is left to run.
    assert cli.main(arguments) == 0
    assert capsys.readouterr().err.splitlines() == [f"{first}; 8 are finished"]


@pytest.mark.slow
def test_an_interruption_is_one_line_and_keeps_what_was_finished(tmp_path, capsys, monkeypatch):
    train, trained = program.InMemoryRunner.train, []

    def interrupted(self, runs, *rest):
        if trained:
            raise KeyboardInterrupt
        trained.append(runs)
        return train(self, runs, *rest)

    arguments = ["compare", "--method", "erm", "--seeds", "2", "--steps", "2", "--target", "clean", "noise"]
    arguments += ["--runs-at-once", "2", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(program.InMemoryRunner, "train", interrupted)
        assert cli.main(arguments) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("disam-jax: interrupted; what was finished is kept")
    assert [run.target for run in results_file.load_results(tmp_path / "out").runs] == [
        run.target for run in trained[0]
    ]
    assert cli.main(arguments) == 0
    assert "; 2 are finished" in capsys.readouterr().err


def test_durations_do_not_depend_on_the_time_of_day(monkeypatch):
    """A clock that is set back in a run makes no duration negative."""
    day = iter(range(10_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(day)))
    left = times.TimeLeft(0, 2)
    assert left.clock() >= left.began
