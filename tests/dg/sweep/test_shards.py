"""Shards: parts of a sweep in folders of their own, and merging, which loses and doubles nothing."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import pytest
from synthetic_results import make_plan, write_results

from disam_jax.dg.cli import main as cli
from disam_jax.dg.errors import InputError
from disam_jax.dg.report.summary import summarise
from disam_jax.dg.report.write import text_files
from disam_jax.dg.sweep import results_file
from disam_jax.dg.sweep.merge import merge
from disam_jax.dg.sweep.model_selection import CRITERIA
from disam_jax.dg.sweep.shards import Shard, in_shard, merged_command, parse_shard


def text(results):
    return text_files(results, {each: summarise(results, each) for each in CRITERIA}, "validation")


# Which part.


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_every_run_falls_to_one_shard_and_every_shard_has_some_of_every_method(count):
    _, plan = make_plan(methods=("erm", "sam", "disam"), seeds=4, candidates=3)
    parts = [dataclasses.replace(plan, shard=Shard(index, count)).runs for index in range(count)]
    names = [run[:4] for part in parts for run in part]
    assert sorted(names) == sorted(run[:4] for run in plan.runs)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 3
    if count <= 36:
        assert all({run.method for run in part} == {*plan.candidates} for part in parts)


def test_the_candidates_of_a_seed_and_target_stay_together():
    _, plan = make_plan(methods=("sam",), seeds=2, candidates=5)
    for index in range(3):
        mine = in_shard(plan.runs, 0, Shard(index, 3))
        groups = {(run.seed, run.target) for run in mine}
        assert len(mine) == 10
        assert len(groups) == 2


SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "4"}


@pytest.mark.parametrize(
    ("given", "environment", "shard"),
    [
        ("0/1", {}, (0, 1)),
        ("3/4", {"SLURM_ARRAY_TASK_ID": "1"}, (3, 4)),
        ("auto", SLURM, (3, 4)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": "1"}, (2, 4)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_STEP": "2"}, (3, 4)),
        ("auto", KUBERNETES, (3, 4)),
        ("auto", {**KUBERNETES, **SLURM, "SLURM_ARRAY_TASK_ID": "0"}, (0, 4)),
    ],
)
def test_the_part_is_read(given, environment, shard):
    assert parse_shard(given, environment) == shard


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        ("4/4", {}, "I from 0 to N - 1 and N up to 100,000, got 4/4"),
        ("0/0", {}, "got 0/0"),
        ("0/100001", {}, "got 0/100001"),
        ("-1/4", {}, "got '-1/4'"),
        ("1", {}, "must be I/N"),
        ("1/4/2", {}, "must be I/N"),
        ("²/4", {}, "must be I/N"),
        ("a/b", {}, "must be I/N"),
        ("", {}, "must be I/N"),
        ("9" * 400 + "/4", {}, "must be I/N"),
        ("auto", {}, "none is set: write --shard I/N"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT to be a whole number, it is not set"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID to be a whole number, got 'x'"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "7"}, "wants a job array without gaps, got task 7 of 4 from 0"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "set JOB_COMPLETIONS to the completions of the job"),
        ("auto", {**KUBERNETES, "JOB_COMPLETIONS": "3"}, "got 3/3 from JOB_COMPLETION_INDEX and JOB_COMPLETIONS"),
    ],
)
def test_a_part_that_makes_no_sense_says_what_to_write(given, environment, said):
    with pytest.raises(InputError, match=r"^--shard ") as error:
        parse_shard(given, environment)
    assert said in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("command", "whole"),
    [
        ("disam-jax sweep --shard 0/4 --steps 3 --out 'a b'", "disam-jax sweep --steps 3 --out all"),
        ("disam-jax sweep --shard=auto --out=a", "disam-jax sweep --out=all"),
        ("disam-jax compare --shard auto", "disam-jax compare"),
    ],
)
def test_the_command_of_the_whole(tmp_path, command, whole):
    assert merged_command(command, "all") == whole


# Merging.


def write_shards(root, count=3, **options):
    for index in range(count):
        command = f"disam-jax sweep --shard {index}/{count} --out {root / str(index)}"
        write_results(root / str(index), shard=Shard(index, count), command=command, **options)
    return [root / str(index) for index in range(count)]


def test_the_whole_is_that_of_one_process(tmp_path):
    write_results(tmp_path / "one", command=f"disam-jax sweep --out {tmp_path / 'all'}", by_run=True)
    folders = write_shards(tmp_path / "parts", by_run=True)
    one = results_file.load_results(tmp_path / "one")
    # The order in which they are given does not count.
    assert text(merge(folders[::-1], tmp_path / "all")) == text(one)
    assert text(results_file.load_results(tmp_path / "all")) == text(one)
    # And it can be gone on with as if one process had trained it.
    header, plan = make_plan(seeds=3)
    with results_file.open_store(tmp_path / "all", header) as store:
        assert sum(map(store.has, plan.runs)) == 12


def test_merging_again_changes_nothing_and_goes_on_where_it_was(tmp_path):
    folders = write_shards(tmp_path / "parts")
    merge(folders, tmp_path / "all")
    path = tmp_path / "all" / results_file.FILE
    content = path.read_bytes()
    merge(folders, tmp_path / "all")
    assert path.read_bytes() == content
    path.write_bytes(content[: len(content) // 2])
    merge(folders, tmp_path / "all")
    assert path.read_bytes() == content


def edit(path, change, place=0):
    lines = (path / results_file.FILE).read_text().splitlines()
    value = json.loads(lines[place])
    value.pop("crc32")
    change(value)
    lines[place] = json.dumps(value)
    (path / results_file.FILE).write_text("\n".join(lines) + "\n")


def other_data(folders):
    edit(folders[1], lambda line: line["header"]["data"].update(fingerprint="0"))
    return folders


def other_version(folders):
    edit(folders[2], lambda line: line["header"]["version"].update(disam_jax="99"))
    return folders


def replaced(folders, place, **options):
    """The folders, of which one has other results."""
    shutil.rmtree(folders[place])
    write_results(folders[place], **options)
    return folders


def other_setting(folders):
    return replaced(folders, 1, shard=Shard(1, 3), steps=6)


def other_runs(folders):
    return replaced(folders, 1, shard=Shard(1, 3), seeds=3)


def other_candidates(folders):
    return replaced(folders, 1, shard=Shard(1, 3), candidates=2)


def other_deal(folders):
    return replaced(folders, 1, shard=Shard(1, 4))


def other_program(folders):
    return replaced(folders, 1, shard=Shard(1, 3), at_once=2)


def whole_sweep(folders):
    return replaced(folders, 1)


def one_missing(folders):
    return folders[:2]


def one_twice(folders):
    return [*folders, folders[1].parent / ".." / "parts" / "1"]


def a_copy(folders):
    shutil.copytree(folders[0], folders[0].parent / "copy")
    return [*folders, folders[0].parent / "copy"]


def unfinished(folders):
    return replaced(folders, 2, shard=Shard(2, 3), leave=1)


def run_of_another(folders):
    other = (folders[0] / results_file.FILE).read_text().splitlines()[2]
    edit(folders[1], lambda line: line.update(runs=[*line["runs"], *json.loads(other)["runs"]]), 2)
    return folders


def damaged(folders):
    with (folders[1] / results_file.FILE).open("ab") as file:
        file.write(b"5\n")
    return folders


def nothing_there(folders):
    return [*folders[:2], folders[0].parent / "nothing"]


WRONG = {
    other_data: "parts/1 are shards of different sweeps: --data and its options: data.fingerprint is",
    other_version: "parts/2 are shards of different sweeps: version.disam_jax is",
    other_setting: "--steps: setting.steps is 4 there and 6 here",
    other_runs: "--seeds: seeds is [0, 1] there and [0, 1, 2] here",
    other_candidates: "candidates is 1 there and 2 here",
    other_deal: "is shard 0/3, ",
    other_program: "parts/1 2: their numbers differ by rounding",
    whole_sweep: "parts/1 holds a whole sweep, no shard",
    one_missing: "1 of 3 shards are missing: 2/3: give them too",
    one_twice: "is given twice",
    a_copy: "are both shard 0/3: give one",
    unfinished: "parts/2, shard 2/3, lacks ",
    run_of_another: "runs that do not fall to its shard, 1/3",
    damaged: "line ",
    nothing_there: "cannot read",
}


@pytest.mark.parametrize(("make", "said"), WRONG.items(), ids=[make.__name__ for make in WRONG])
def test_folders_that_do_not_belong_together_are_refused(tmp_path, capsys, make, said):
    folders = make(write_shards(tmp_path / "parts"))
    before = {path: path.read_bytes() for path in (tmp_path / "parts").rglob("*") if path.is_file()}
    assert cli.main(["merge", *map(str, folders), "--out", str(tmp_path / "all")]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "all").exists()
    assert {path: path.read_bytes() for path in (tmp_path / "parts").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (lambda parts: parts / "1", "is one of the shards"),
        (lambda parts: parts.parent / "other", "holds results of something else"),
    ],
)
def test_an_out_that_is_taken_is_left_alone(tmp_path, out, said):
    folders = write_shards(tmp_path / "parts")
    write_results(tmp_path / "other", steps=6)
    path = out(tmp_path / "parts") / results_file.FILE
    before = path.read_bytes()
    with pytest.raises(InputError, match=said):
        merge(folders, path.parent)
    assert path.read_bytes() == before


def test_one_folder_is_no_merge(tmp_path, capsys):
    folders = write_shards(tmp_path / "parts", count=1)
    assert cli.main(["merge", str(folders[0]), "--out", str(tmp_path / "all")]) == 2
    assert "merge takes the folders of all shards" in capsys.readouterr().err


def test_shards_of_several_versions_of_jax_are_kept_apart(tmp_path, monkeypatch):
    folders = write_shards(tmp_path / "parts", count=2)
    shutil.rmtree(folders[1])
    first = jax.__version__
    monkeypatch.setattr(jax, "__version__", "99.0.0")
    write_results(folders[1], shard=Shard(1, 2))
    results = merge(folders, tmp_path / "all")
    assert f"{first}: 6 runs, 99.0.0: 6 runs" in results.header["notes"][-1]
    written = results_file.read_written(tmp_path / "all")
    theirs = {name for name, version in written.versions.items() if version == "99.0.0"}
    assert theirs == results_file.read_written(folders[1]).records.keys()


def test_a_shard_and_a_whole_sweep_do_not_share_a_folder(tmp_path):
    folders = write_shards(tmp_path / "parts")
    for header in (make_plan()[0], make_plan(shard=Shard(1, 3))[0], make_plan(shard=Shard(0, 3), seeds=3)[0]):
        with pytest.raises(InputError, match="holds results of something else"):  # noqa: SIM117
            with results_file.open_store(folders[0], header):
                pass


def test_status_of_a_shard_is_of_its_own_runs(tmp_path, capsys):
    folders = write_shards(tmp_path / "parts", leave=1)
    assert cli.main(["status", str(folders[0])]) == 0
    assert "toy: 2 of 4 runs done, 2 missing" in capsys.readouterr().out


# Real processes.

COMMAND = [sys.executable, "-m", "disam_jax.dg.cli", "compare", "--method", "erm,sam", "--seeds", "2", "--target"]
COMMAND += ["noise", "clean", "--steps", "8", "--candidates", "2", "--evaluations", "2"]
# `report.json` lists the others.
OF_THE_CLOCK = {"record.json", "cost.md", "cost.csv", "cost.tex", "report.json", results_file.FILE}


@pytest.mark.slow
def test_shards_of_several_processes_end_with_the_bytes_of_one(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "", "JOB_COMPLETIONS": "2"}
    start = lambda *more, **variables: subprocess.Popen(
        [*COMMAND, *more],
        cwd=tmp_path,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    children = [
        start("--out", "all"),
        *(start("--shard", "auto", "--out", f"part{index}", JOB_COMPLETION_INDEX=str(index)) for index in range(2)),
    ]
    for child in children:
        _, err = child.communicate()
        assert child.returncode == 0, err
    os.rename(tmp_path / "all", tmp_path / "one")
    merging = [sys.executable, "-m", "disam_jax.dg.cli", "merge", "part1", "part0", "--out", "all"]
    done = subprocess.run(merging, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert b"ERM" in done.stdout
    names = {path.name for path in (tmp_path / "one").iterdir()} - OF_THE_CLOCK
    assert "table.md" in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes(), name
