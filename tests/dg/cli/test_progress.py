"""Progress: a bar on a terminal, plain lines in a file, with the time that is left."""

import io
import re
import shlex
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


def test_the_rest_of_a_sweep_is_what_is_to_be_compiled_and_what_is_to_be_trained():
    now = [0.0]
    left = times.TimeToGo({"ERM": 20, "SAM": 10, "DISAM": 0}, {"ERM": 1, "SAM": 2, "DISAM": 2}, clock=lambda: now[0])
    left.compiled("ERM", 40.0)
    assert left.seconds() is None
    assert left.text() == ""
    left.trained("ERM", 10, 30.0)
    # 10 runs of 3 s; of SAM 10 runs of 6 s and a program of 40 s.
    assert left.seconds() == 10 * 3.0 + 10 * 6.0 + 40.0
    assert left.text().endswith("with 1 program to compile")
    now[0] = 50.0
    assert left.seconds() == 80.0
    left.trained("ERM", 10, 10.0)  # the first chunk had compiled something else
    assert left.seconds() == 10 * 2.0 + 40.0
    left.compiled("SAM", 20.0)
    assert left.seconds() == 10 * 2.0
    left.trained("SAM", 10, 33.0)
    assert left.text() == ""


def test_something_is_said_at_least_once_a_minute():
    now, lines = [0.0], []
    pulse = progress.Pulse(lines.append, every=60.0, clock=lambda: now[0])
    for second in range(200):
        now[0] = second
        if second == 10:
            pulse.begin("compiling SAM")
        if second == 100:
            pulse.say("1 of 2 runs are finished")
        pulse.begin("compiling SAM" if second < 130 else "training SAM")
        pulse.beat()
    assert lines == [
        "still compiling SAM, for 1 min",
        "1 of 2 runs are finished",
        "still training SAM, for 30 s",
    ]


def test_nothing_is_told_from_the_clock_before_a_sweep_can_tell():
    """A first segment behind a compilation would make hours of minutes."""
    told = progress.Told()
    left = times.TimeLeft(0, 10, clock=ticking(0.0, 5.0, 5.0))
    assert told.rest(left, 5) == "about 5 s left"
    told.estimate("")
    assert told.rest(left, 5) == ""


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
    with progress.progress() as told:
        told.show("training", 1, 2)
        told.say("a line")


def test_a_line_has_no_character_that_controls_a_terminal(capsys):
    progress.say("a\x1b[31m\nb\r\u202ec é")
    assert capsys.readouterr().err == "disam-jax: a\\x1b[31m\\nb\\r\\u202ec é\n"


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress() as told:
        told.estimate("about 5 min left")
        told.show("training [bold]a", 1, 4)
        told.log("as the bar shows")
        told.say("digits: 8 runs")
    assert "training [bold]a" in terminal.getvalue()
    assert "about 5 min left" in terminal.getvalue()
    assert "disam-jax: digits: 8 runs\n" in terminal.getvalue()
    assert "as the bar shows" not in terminal.getvalue()


@pytest.mark.slow
def test_a_log_says_at_the_start_what_is_run_and_has_a_line_for_each_chunk(tmp_path, capsys):
    arguments = ["compare", "--method", "erm", "sam", "--seeds", "2", "--steps", "2", "--target", "clean", "noise"]
    arguments += ["--runs-at-once", "2", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    first, *others = [line for line in capsys.readouterr().err.splitlines() if "compiling" not in line]
    assert first == (
        "disam-jax: digits: 2 methods x 2 targets x 2 seeds = 8 runs in 2 programs, of ERM, SAM; targets clean, noise"
    )
    done = [re.match(r"disam-jax: (\d) of 8 runs are finished, the last of (ERM|SAM)", line) for line in others]
    chunks = [found.groups() for found in done if found]
    assert [name for _, name in chunks] == ["ERM", "ERM", "SAM", "SAM"]
    assert [int(number) for number, _ in chunks] == [2, 4, 6, 8]
    left = [line.partition(", about ")[2] for line, found in zip(others, done, strict=True) if found]
    assert [text.partition(" left")[2] for text in left] == [", with 1 program to compile"] * 2 + ["", ""]
    assert [bool(text) for text in left] == [True, True, True, False]
    # Nothing is left to run.
    assert cli.main(arguments) == 0
    assert capsys.readouterr().err.splitlines() == [f"{first.replace(' in 2 programs', '')}; 8 are finished"]


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
    line = printed.err.splitlines()[-1]
    assert line.startswith(
        f"disam-jax: interrupted; 2 of 4 runs are saved in {tmp_path / 'out'}; go on with: disam-jax "
    )
    # The command is the one that was typed.
    assert shlex.split(line.partition("go on with: disam-jax ")[2]) == arguments
    assert [run.target for run in results_file.load_results(tmp_path / "out").runs] == [
        run.target for run in trained[0]
    ]
    assert cli.main(arguments) == 0
    assert "; 2 are finished, 2 are left, in 1 program" in capsys.readouterr().err


def test_durations_do_not_depend_on_the_time_of_day(monkeypatch):
    """A clock that is set back in a run makes no duration negative."""
    day = iter(range(10_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(day)))
    left = times.TimeLeft(0, 2)
    assert left.clock() >= left.began
