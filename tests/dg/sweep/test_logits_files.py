"""Files of logits: whole or not there, of the runs beside them, also where a sweep grows, is merged or moved aside."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from synthetic_results import make_plan, write_results

from disam_jax.dg.cli import compare
from disam_jax.dg.cli import main as cli
from disam_jax.dg.errors import InputError
from disam_jax.dg.sweep import logits_files, results_file
from disam_jax.dg.sweep.logits_files import logits_bytes, logits_path, read_logits, size_line
from disam_jax.dg.sweep.merge import merge
from disam_jax.dg.sweep.results_folder import LOGITS
from disam_jax.dg.sweep.shards import Shard

MEASURED_BY_THE_CLOCK = {"record.json", results_file.FILE}
KINDS = ("logits", "labels", "valida")


def kept_of(out):
    """The logits of all runs of a folder by what a run is, and not by the number of its candidate."""
    results = results_file.load_results(out)
    read = read_logits(out, results_file.read_written(out).chunk_of, results, range(len(results.runs)))
    name = lambda run: (run.method, run.target, run.seed, tuple(sorted(run.hparams.items())))
    return {name(results.runs[index]): kept for index, kept in read}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, kept in one.items():
        for field in kept._fields:
            np.testing.assert_array_equal(getattr(kept, field), getattr(other[name], field), err_msg=str(name))


def report_of(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name not in MEASURED_BY_THE_CLOCK
    }


# Folders that change.


def test_a_sweep_that_was_interrupted_ends_with_the_logits_of_one_that_was_not(tmp_path):
    write_results(tmp_path / "whole", logits=True, by_run=True)
    write_results(tmp_path / "cut", logits=True, by_run=True, leave=2)
    path = tmp_path / "cut" / results_file.FILE
    # A file whose chunk has no line yet: the process was killed between the two.
    shutil.copy(logits_path(tmp_path / "whole", "SAM", 0), logits_path(tmp_path / "cut", "SAM", 0))
    before = len(results_file.load_results(path.parent).runs)
    header, plan = make_plan(logits=True)
    whole = kept_of(tmp_path / "whole")
    results = results_file.load_results(tmp_path / "whole")
    with results_file.open_store(path.parent, header) as store:
        missing = [run for run in plan.runs if not store.has(run)]
        assert len(missing) == len(plan.runs) - before
        store.program("SAM", {"runs_at_once": 3, "flops": 1.0e6})
        for run in missing:
            measured = measured_again(results, run)
            logits = whole[run.method, run.target, run.seed, tuple(sorted(run.hparams.items()))]
            store.chunk("SAM", [run], {**measured, "logits": [logits]})
    assert_same(kept_of(tmp_path / "cut"), whole)


def measured_again(results, run):
    index = [each[:4] for each in results.runs].index(run[:4])
    return {name: getattr(results, name)[[index]] for name in results_file.MEASURED}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"seeds": 3}),
        ({"methods": ("sam",)}, {"methods": ("erm", "sam")}),
        ({"targets": (1,)}, {"targets": (0, 1, 2)}),
        ({"candidates": 2}, {"candidates": 3}),
    ],
)
def test_a_sweep_that_grows_keeps_its_logits(tmp_path, first, then):
    write_results(tmp_path, logits=True, by_run=True, **first)
    before = kept_of(tmp_path)
    header, _ = make_plan(logits=True, **then)
    with results_file.open_store(tmp_path, header) as store:
        store.begin()
    assert_same(kept_of(tmp_path), before)


def test_candidates_that_are_counted_anew_keep_their_logits(tmp_path):
    header, _ = write_results(tmp_path, logits=True, by_run=True, candidates=2)
    before = kept_of(tmp_path)
    # As a grid with a value between two others.
    more = json.loads(json.dumps(header))
    for name, candidates in more["candidates"].items():
        candidates.insert(0, {**candidates[0], "learning_rate": 0.5})
        more["methods"][name]["candidates"] += 1
    more["planned"] = sum(map(len, more["candidates"].values())) * len(more["targets"]) * len(more["seeds"])
    with results_file.open_store(tmp_path, more) as store:
        store.begin()
    assert_same(kept_of(tmp_path), before)


@pytest.mark.slow
def test_the_whole_of_shards_has_the_logits_and_the_report_of_one_process(tmp_path, capsys):
    write_results(tmp_path / "one", command=f"disam-jax sweep --out {tmp_path / 'all'}", by_run=True, logits=True)
    folders = []
    for index in range(3):
        folders.append(tmp_path / str(index))
        write_results(folders[-1], shard=Shard(index, 3), command="disam-jax sweep", by_run=True, logits=True)
    merge(folders[::-1], tmp_path / "all")
    assert_same(kept_of(tmp_path / "all"), kept_of(tmp_path / "one"))
    for name in ("all", "one"):
        assert cli.main(["report", str(tmp_path / name)]) == 0
    # These have the command, in which --out differs.
    with_command = ("table.md", "results.json", "report.html")
    one = {name: each for name, each in report_of(tmp_path / "one").items() if name not in with_command}
    assert {name: each for name, each in report_of(tmp_path / "all").items() if name in one} == one
    assert "kept_metrics.csv" in one
    capsys.readouterr()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a complete npz file"),
    ],
)
def test_a_shard_whose_logits_are_gone_is_not_merged(tmp_path, damage, said):
    folders = [tmp_path / "0", tmp_path / "1"]
    for index, folder in enumerate(folders):
        write_results(folder, shard=Shard(index, 2), logits=True)
    damage(logits_path(folders[1], "SAM", 0))
    with pytest.raises(InputError, match=said):
        merge(folders, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_logits_are_moved_aside_with_their_results(tmp_path):
    write_results(tmp_path, logits=True)
    before = kept_of(tmp_path)
    with results_file.open_store(tmp_path, make_plan(steps=6, logits=True)[0], overwrite=True) as store:
        aside = store.aside
    assert not (tmp_path / LOGITS).exists()
    assert_same(kept_of(aside), before)


@pytest.mark.parametrize(("there", "here"), [(True, False), (False, True)])
def test_results_with_logits_and_without_do_not_share_a_folder(tmp_path, there, here):
    write_results(tmp_path, logits=there)
    with (
        pytest.raises(InputError, match=r"holds results of something else: --keep-logits: setting\.keep_logits is "),
        results_file.open_store(tmp_path, make_plan(logits=here)[0]),
    ):
        pass


def a_file(folder):
    folder.write_bytes(b"mine")


def a_link(folder):
    (folder.parent / "mine").mkdir()
    folder.symlink_to("mine")


def an_array(folder):
    folder.mkdir()
    np.savez(folder / "ERM-0.npz", logits=np.zeros(3))


def a_text(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize("make", [a_file, a_link, an_array, a_text])
def test_what_the_user_has_in_the_place_of_the_logits_is_left_alone(tmp_path, make):
    make(tmp_path / LOGITS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"results-logits.* is not from disam-jax: give another --out, or move it"):
        write_results(tmp_path, logits=True)
    assert {path: path.read_bytes() for path in before} == before


def test_it_is_seen_before_anything_takes_long(tmp_path, capsys, monkeypatch):
    a_text(tmp_path / LOGITS)
    monkeypatch.setattr(compare, "prepare", None)
    assert cli.main(["compare", "--keep-logits", "--out", str(tmp_path)]) == 2
    assert "notes.txt is not from disam-jax" in capsys.readouterr().err
    assert not (tmp_path / results_file.FILE).exists()


FULL = """
import pathlib, resource, sys
sys.path[:0] = {paths!r}
from synthetic_results import write_results
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
write_results(pathlib.Path({out!r}), logits=True, at_once=20)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_a_folder_that_goes_on(tmp_path):
    # A file of logits is larger than the limit, the header of the results is not.
    write_results(tmp_path, logits=True, leave=100)
    size = (tmp_path / results_file.FILE).stat().st_size
    script = FULL.format(paths=sys.path, out=str(tmp_path), size=size + 600)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert "cannot write to" in done.stderr.splitlines()[-1]
    assert "what was finished before is kept, and the same command goes on from there" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.npz"))
    write_results(tmp_path, logits=True, at_once=20)
    assert len(kept_of(tmp_path)) == 12


def test_the_size_is_known_before_and_said_when_it_is_large(tmp_path):
    header, plan = write_results(tmp_path, logits=True)
    counts = list(header["data"]["domains"].values())
    files = list((tmp_path / LOGITS).iterdir())
    arrays = sum(value.nbytes for path in files for name, value in np.load(path).items() if name[:6] in KINDS)
    assert arrays <= logits_bytes(plan.runs, counts, 2) <= 2 * arrays
    assert size_line(plan.runs, header, tmp_path) is None
    line = size_line(plan.runs, header, tmp_path, large=1)
    assert line.startswith("--keep-logits will take up to 0.0 GiB in ")
    assert line.endswith("GiB are free there")
    free = shutil.disk_usage(tmp_path).free
    many = plan.runs * (free // logits_bytes(plan.runs, counts, 2) // 10**6 + 1)
    huge = {**header, "data": {**header["data"], "domains": dict.fromkeys("abc", 4 * 10**6)}}
    assert "; only " in size_line(many, huge, tmp_path)


# Bad input, as a report meets it.


def edited(path, change):
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)


def about(arrays, **values):
    text = {**json.loads(arrays["about"].tobytes()), **values}
    arrays["about"] = np.frombuffer(json.dumps(text).encode(), np.uint8)


def truncated(out, path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bit_flipped(out, path):
    content = bytearray(path.read_bytes())
    place = content.find(np.load(path)["logits_0"].tobytes())
    content[place] ^= 1
    path.write_bytes(content)


def missing(out, path):
    path.unlink()


def all_missing(out, path):
    shutil.rmtree(path.parent)


def of_another_chunk(out, path):
    shutil.copy(logits_path(out, "SAM", 1), path)


def of_other_numbers(out, path):
    edited(path, lambda arrays: arrays.update(logits_0=np.float16([-1, 0]) * np.ones_like(arrays["logits_0"])))


def of_other_data(out, path):
    edited(path, lambda arrays: about(arrays, fingerprint="0"))


def of_other_steps(out, path):
    edited(path, lambda arrays: about(arrays, steps=[0, 1, 2]))


def of_another_version(out, path):
    edited(path, lambda arrays: about(arrays, schema=2))


def of_another_program(out, path):
    np.savez(path, logits_0=np.zeros(3))


def of_no_object(out, path):
    edited(path, lambda arrays: arrays.update(about=np.frombuffer(b"[1]", np.uint8)))


def of_more_classes(out, path):
    edited(path, lambda arrays: arrays.update(logits_0=np.zeros((*arrays["logits_0"].shape[:2], 3), np.float16)))


def of_fewer_examples(out, path):
    edited(path, lambda arrays: arrays.update(logits_0=arrays["logits_0"][:, :3]))


def of_another_type(out, path):
    edited(path, lambda arrays: arrays.update(labels_0=arrays["labels_0"].astype(float)))


def of_a_label_too_many(out, path):
    edited(path, lambda arrays: arrays.update(labels_0=arrays["labels_0"] + np.int32(1)))


def without_labels(out, path):
    edited(path, lambda arrays: arrays.pop("labels_0"))


def of_no_point(out, path):
    edited(path, lambda arrays: arrays.update(points_0=arrays["points_0"] + np.int32(9)))


def of_another_point(out, path):
    def change(arrays):
        arrays.update(points_0=np.int32([0]), logits_0=np.full((1, 4, 2), np.nan, np.float16))

    edited(path, change)


def not_finite(out, path):
    edited(path, lambda arrays: arrays.update(logits_0=np.nan * arrays["logits_0"]))


def a_folder(out, path):
    path.unlink()
    path.mkdir()


WRONG = {
    truncated: "SAM-0.npz: not a complete npz file",
    bit_flipped: "cannot read logits_0 of ",
    missing: "SAM-0.npz is missing, the logits of runs in ",
    all_missing: "-0.npz is missing, the logits of runs in ",
    a_folder: "it is a folder, not a file",
    of_another_chunk: "SAM-0.npz is of other runs: it has no logits of SAM, target art, seed 0, candidate 0",
    of_other_numbers: "SAM-0.npz is of other runs: SAM, seed 0, step ",
    of_other_data: "SAM-0.npz has logits of other data than the results beside it",
    of_other_steps: "SAM-0.npz has logits of other points of training than the results beside it",
    of_another_version: "SAM-0.npz has version 2 of the file, this disam-jax reads 1",
    of_another_program: "SAM-0.npz is not a file of logits of disam-jax: it has no array 'about'",
    of_no_object: "SAM-0.npz is not a file of logits of disam-jax: 'about' ",
    of_more_classes: "its logits are of 3 classes, the results of 2",
    of_fewer_examples: "4, 2], got float16[",
    of_another_type: "labels_0 must be int32[4], got float64[4]",
    of_a_label_too_many: "labels_0 must be classes, 0 to 1",
    without_labels: "it has no array labels_0",
    of_no_point: "points_0 must be points of training, 0 to 2",
    of_another_point: "has no logits at the point of training that is chosen",
    not_finite: "has logits that are not finite, of a run that did not diverge",
}


@pytest.mark.parametrize(("make", "said"), WRONG.items(), ids=[make.__name__ for make in WRONG])
def test_logits_that_are_damaged_or_of_something_else_are_refused(tmp_path, capsys, make, said):
    write_results(tmp_path, logits=True, select="last")
    make(tmp_path, logits_path(tmp_path, "SAM", 0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert cli.main(["report", str(tmp_path), "--metrics", "ece"]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_everything_else_can_still_be_reported(tmp_path, capsys):
    write_results(tmp_path, logits=True)
    shutil.rmtree(tmp_path / LOGITS)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "or leave their metrics out with --metrics none" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path), "--metrics", "none"]) == 0
    assert "table.md" in report_of(tmp_path)
    assert not (tmp_path / "kept_metrics.csv").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("logits", "metrics", "said"),
    [
        (False, ["ece"], "has no logits, from which --metrics are computed: train these runs again with --keep-logits"),
        (True, ["ecce"], "unknown --metrics ecce: the metrics are class_accuracy, "),
        (True, ["none", "ece"], "--metrics none stands alone"),
    ],
)
def test_metrics_that_cannot_be_had_say_why(tmp_path, capsys, logits, metrics, said):
    write_results(tmp_path, logits=logits)
    assert cli.main(["report", str(tmp_path), "--metrics", *metrics]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()


# What is printed and written.


@pytest.mark.slow
def test_a_report_has_all_metrics_or_those_that_are_named(tmp_path, capsys):
    write_results(tmp_path, logits=True)
    assert cli.main(["report", str(tmp_path)]) == 0
    printed, first = capsys.readouterr().out, report_of(tmp_path)
    for name in ("worst_class", "worst_domain", "macro_f1", "auroc", "ece"):
        assert name in printed
    for name in ("metric_confusion.csv", "metric_confusion_dark.png", "metric_reliability.pdf", "kept_comparisons.tex"):
        assert name in first
    page = first["table.md"].decode()
    assert "## Metrics of the kept logits" in page
    assert 'srcset="metric_confusion_dark.png"' in page
    assert json.loads(first["results.json"])["kept_metrics"]["auroc"]["methods"]["SAM"]["undefined"] == [0]
    assert cli.main(["report", str(tmp_path)]) == 0
    assert report_of(tmp_path) == first
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), "--metrics", "ECE,macro-f1"]) == 0
    assert "│" not in capsys.readouterr().out
    header = (tmp_path / "kept_metrics.csv").read_text().splitlines()[0]
    assert header == "method,ece,ece se,macro_f1,macro_f1 se"
    assert not (tmp_path / "metric_confusion.png").exists()


@pytest.mark.slow
def test_every_selection_has_its_metrics(tmp_path, capsys):
    write_results(tmp_path, logits=True, candidates=3)
    for select in ("validation", "oracle", "last"):
        assert cli.main(["report", str(tmp_path), "--select", select]) == 0
        folder = tmp_path if select == "validation" else tmp_path / f"select-{select}"
        # The lowest of the targets, of the accuracy that is in the same report.
        of = json.loads((folder / "results.json").read_text())
        accuracy = np.array(of["criteria"][select]["methods"]["SAM"]["scores"]["accuracy"])
        worst = of["kept_metrics"]["worst_domain"]["methods"]["SAM"]
        assert worst["overall"]["mean"][0] == pytest.approx(accuracy.min(1).mean(), abs=1e-3)
        np.testing.assert_allclose(np.array(worst["values"])[..., 0], accuracy, atol=1e-3)
    capsys.readouterr()


def test_a_file_of_the_user_that_has_the_name_of_a_metric_is_left_alone(tmp_path, capsys):
    write_results(tmp_path, logits=True)
    (tmp_path / "metric_confusion.png").write_bytes(b"mine")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "metric_confusion.png is not from disam-jax" in capsys.readouterr().err
    assert (tmp_path / "metric_confusion.png").read_bytes() == b"mine"


def test_a_run_is_in_the_results_only_with_its_logits(tmp_path, monkeypatch):
    def full(path, arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(logits_files, "_save", full)
        with pytest.raises(InputError, match=r"cannot write to .*results-logits: No space left on device; what was"):
            write_results(tmp_path, logits=True)
    assert not results_file.read_written(tmp_path).records
    assert [path.name for path in tmp_path.rglob("*") if path.suffix == ".npz"] == []
    write_results(tmp_path, logits=True)
    assert len(kept_of(tmp_path)) == 12
