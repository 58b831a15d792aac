"""Sweeps on a cluster of real processes, which are really killed: the tables are the bytes of one process."""

import contextlib
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from disam_jax.dg.cli import checks, compare
from disam_jax.dg.cli import cluster as of_workers
from disam_jax.dg.cli import main as cli
from disam_jax.dg.cli.options import Compare
from disam_jax.dg.errors import InputError
from disam_jax.dg.sweep import cluster, results_file
from disam_jax.dg.sweep.cluster import Devices, worker_environments
from disam_jax.dg.sweep.results_folder import LOGITS

psutil = pytest.importorskip("psutil")
pytest.importorskip("distributed")

# Sixteen chunks, of one run for each core.
COMMAND = ["compare", "--method", "erm", "--seeds", "2", "--target", "noise", "clean", "--steps", "4"]
COMMAND += ["--candidates", "4", "--evaluations", "2", "--runs-at-once", str(os.cpu_count())]
COMMAND += ["--save", "best", "--keep-logits"]
MEASURED_BY_THE_CLOCK = {"record.json", "cost.md", "cost.csv", "cost.tex", results_file.FILE}
SECONDS = 600.0


def environment(**more):
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return {**kept, "PYTHONPATH": str(pathlib.Path(compare.__file__).parents[3]), **more}


@contextlib.contextmanager
def started(folder, *options, module="disam_jax.dg.cli", **more):
    """A process whose output goes to a file; it and its children are gone at the end."""
    folder.mkdir(exist_ok=True)
    with (folder / "printed").open("ab") as printed:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, options)],
            cwd=folder,
            env=environment(**more),
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
    try:
        yield child
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        child.wait()


def printed(folder):
    return (folder / "printed").read_text()


def ended(child, folder):
    """The exit status of a process that ends by itself."""
    try:
        return child.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it does not end: {printed(folder)}")


def chunks(folder):
    path = folder / "out" / results_file.FILE
    return path.read_bytes().count(b'\n{"chunk"') if path.exists() else 0


def wait_for(condition, child, folder):
    until = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > until or child.poll() is not None:
            pytest.fail(f"it did not come so far: {printed(folder)}")
        time.sleep(0.05)


def workers_of(child):
    """The processes that train, of a client on this machine."""
    found = []
    for each in psutil.Process(child.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("spawn_main" in word for word in each.cmdline()):
                found.append(each)
    return found


def same_files(folder, one):
    """Whether two folders have the same files, but for what the clock measured.

    The metrics of the logits are among them; which chunk has which number, and so which runs are in which file of
    logits, is not the same.
    """
    mine, theirs = folder / "out", one / "out"

    def names_in(out):
        found = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
        return {str(path) for path in found if path.parts[0] != LOGITS}

    names = names_in(theirs)
    assert names_in(mine) == names
    for name in names - MEASURED_BY_THE_CLOCK:
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    assert "table.md" in names
    assert "kept_metrics.csv" in names
    assert (mine / LOGITS).is_dir()
    assert sum(name.endswith("-best.json") for name in names) == 4
    return True


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process makes."""
    folder = tmp_path_factory.mktemp("one")
    with started(folder, *COMMAND, "--out", "out") as child:
        assert ended(child, folder) == 0, printed(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 2])
def test_four_workers_end_with_the_bytes_of_one_process_whoever_is_killed(tmp_path, one, kills):
    rng = random.Random(0)
    with started(tmp_path, *COMMAND, "--workers", "4", "--out", "out") as child:
        for killed in range(kills):
            wait_for(lambda there=1 + 2 * killed: chunks(tmp_path) >= there, child, tmp_path)
            rng.choice(workers_of(child)).kill()
        assert ended(child, tmp_path) == 0, printed(tmp_path)
    assert same_files(tmp_path, one)
    if kills:
        assert "a worker is lost; its chunk goes to another one" in printed(tmp_path)
    assert "Traceback" not in printed(tmp_path)
    # Nothing but lines of ours.
    lines = printed(tmp_path).splitlines()
    assert not [line for line in lines if "distributed" in line]


@pytest.mark.slow
def test_a_client_that_is_killed_goes_on_where_it_was_and_leaves_no_worker(tmp_path, one):
    with started(tmp_path, *COMMAND, "--workers", "2", "--out", "out") as child:
        wait_for(lambda: chunks(tmp_path) >= 2, child, tmp_path)
        workers = workers_of(child)
        child.send_signal(signal.SIGKILL)
        child.wait()
        there = chunks(tmp_path)
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
    with started(tmp_path, *COMMAND, "--workers", "2", "--out", "out") as child:
        assert ended(child, tmp_path) == 0, printed(tmp_path)
    assert f"{there} are finished" in printed(tmp_path)
    assert same_files(tmp_path, one)


@pytest.mark.slow
def test_a_full_disk_of_the_client_loses_nothing(tmp_path, one):
    with started(tmp_path, *COMMAND, "--workers", "1", "--out", "out", JAX_ENABLE_COMPILATION_CACHE="0") as child:
        wait_for(lambda: chunks(tmp_path) >= 1, child, tmp_path)
        # Of the client alone: its files may not grow by another chunk.
        size = (tmp_path / "out" / results_file.FILE).stat().st_size + 500
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        assert ended(child, tmp_path) == 2
    last = printed(tmp_path).splitlines()[-1]
    assert last.startswith("disam-jax: error: cannot write to out/results")
    assert last.endswith("what was finished before is kept, and the same command goes on from there")
    assert len(results_file.load_results(tmp_path / "out").runs) >= 1
    # One process goes on where the cluster was.
    with started(tmp_path, *COMMAND, "--out", "out") as child:
        assert ended(child, tmp_path) == 0, printed(tmp_path)
    assert same_files(tmp_path, one)


@contextlib.contextmanager
def running(folder, preload=""):
    """A scheduler with one worker, as an administrator starts them: its file and its process."""
    (folder / "preload.py").write_text(preload)
    scheduler = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "scheduler.json"]
    worker = ["--scheduler-file", "scheduler.json", "--nthreads", "2", "--no-dashboard", "--preload", "preload.py"]
    # As many devices as the one process has: a run's bits depend on how many runs there are on each.
    flags = f"--xla_force_host_platform_device_count={os.cpu_count()}"
    with contextlib.ExitStack() as processes:
        child = processes.enter_context(started(folder, *scheduler, module="distributed.cli.dask_scheduler"))
        wait_for(lambda: (folder / "scheduler.json").exists(), child, folder)
        processes.enter_context(started(folder, *worker, module="distributed.cli.dask_worker", XLA_FLAGS=flags))
        yield folder / "scheduler.json", child


@pytest.mark.slow
def test_a_cluster_that_runs_already_is_used_from_another_folder(tmp_path, one):
    (tmp_path / "cluster").mkdir()
    with (
        running(tmp_path / "cluster") as (file, _),
        started(tmp_path, *COMMAND, "--scheduler-file", file, "--out", "out") as child,
    ):
        assert ended(child, tmp_path) == 0, printed(tmp_path)
    assert same_files(tmp_path, one)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_scheduler_that_is_gone_is_told_in_time(tmp_path, monkeypatch, how):
    monkeypatch.setattr(cluster, "GONE_SECONDS", 3.0)
    monkeypatch.setattr(cluster, "CLOSE_SECONDS", 3.0)
    (tmp_path / "cluster").mkdir()
    done, times = [], []

    def train(file, scheduler):
        with cluster.running_cluster(None, file) as client:
            for number, _ in cluster.finished(client, time.sleep, [(0.1,)] * 1000, done.append):
                done.append(number)
                if len(done) == 3:
                    scheduler.send_signal(how)
                    times.append(time.monotonic())

    with running(tmp_path / "cluster") as (file, scheduler):
        with pytest.raises(InputError, match="the scheduler is gone: start it again; what was finished is kept"):
            train(file, scheduler)
        assert time.monotonic() - times[0] < 60.0
    assert 3 <= len(done) < 1000


@pytest.mark.slow
def test_a_scheduler_that_is_killed_ends_the_client_and_loses_nothing(tmp_path, one):
    (tmp_path / "cluster").mkdir()
    with (
        running(tmp_path / "cluster") as (file, scheduler),
        started(tmp_path, *COMMAND, "--scheduler-file", file, "--out", "out") as child,
    ):
        wait_for(lambda: chunks(tmp_path) >= 1, child, tmp_path)
        scheduler.send_signal(signal.SIGKILL)
        assert ended(child, tmp_path) == 2, printed(tmp_path)
    there = len(results_file.load_results(tmp_path / "out").runs)
    assert all(line.startswith("disam-jax: ") for line in printed(tmp_path).splitlines()), printed(tmp_path)
    assert printed(tmp_path).splitlines()[-1] == f"disam-jax: error: {cluster.GONE}"
    assert 1 <= there < 16
    with started(tmp_path, *COMMAND, "--out", "out") as child:
        assert ended(child, tmp_path) == 0, printed(tmp_path)
    assert f"{there} are finished" in printed(tmp_path)
    assert same_files(tmp_path, one)


@pytest.mark.slow
def test_a_worker_of_another_version_is_named(tmp_path):
    (tmp_path / "cluster").mkdir()
    with (
        running(tmp_path / "cluster", "import disam_jax\ndisam_jax.__version__ = '99.0'\n") as (file, _),
        started(tmp_path, *COMMAND, "--scheduler-file", file, "--out", "out") as child,
    ):
        assert ended(child, tmp_path) == 2, printed(tmp_path)
    # Before it there may be lines of progress.
    assert all(line.startswith("disam-jax: ") for line in printed(tmp_path).splitlines())
    assert " has disam_jax 99.0, the client " in printed(tmp_path).splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_clients_of_one_folder(tmp_path):
    from synthetic_results import make_plan

    out = tmp_path / "out"
    # This process writes to it.
    with results_file.open_store(out, make_plan()[0]):
        before = (out / results_file.FILE).read_bytes()
        with started(tmp_path, *COMMAND, "--workers", "1", "--out", "out") as child:
            assert ended(child, tmp_path) == 2
        assert "another process is writing to out/results.jsonl: wait for it" in printed(tmp_path)
        assert (out / results_file.FILE).read_bytes() == before


# What is asked for.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 2, "scheduler": "tcp://a:1"}, "--workers and --scheduler exclude each other"),
        ({"scheduler": "tcp://a:1", "scheduler_file": "f"}, "--scheduler and --scheduler-file exclude each other"),
        ({"scheduler": "a:8786"}, "--scheduler must be an address, as tcp://HOST:8786, got 'a:8786'"),
        ({"scheduler": "tcp://a"}, "--scheduler must be an address"),
        ({"scheduler": ""}, "--scheduler must be an address"),
    ],
)
def test_a_cluster_that_makes_no_sense_is_named(options, said):
    with pytest.raises(InputError) as error:
        checks.check_cluster(Compare(**options))
    assert said in str(error.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "disam-jax\[dg,cluster\]"'):
        checks.check_cluster(Compare(workers=2))


def test_a_scheduler_file_that_is_not_there_is_named(tmp_path, capsys):
    assert cli.main(["compare", "--scheduler-file", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "is not there: start dask scheduler --scheduler-file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("devices", "workers", "values"),
    [
        (Devices("cpu", 8), 4, [{"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}] * 4),
        (Devices("cpu", 2), 3, [{"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}] * 3),
        (Devices("gpu", 4), 2, [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]),
    ],
)
def test_every_worker_has_its_share_of_the_machine(monkeypatch, devices, workers, values):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert worker_environments(devices, workers) == values


def test_other_flags_of_xla_are_kept():
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_enable_fast_math=false"
    (only,) = worker_environments(Devices("cpu", 4), 1, flags)
    assert only["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=4"


def test_more_workers_than_accelerators_are_refused():
    with pytest.raises(InputError, match="--workers must be at most 2, the number of accelerators here, got 3"):
        worker_environments(Devices("gpu", 2), 3)


@pytest.mark.slow
def test_the_devices_are_asked_in_another_process():
    assert cluster.devices_here() == Devices("cpu", os.cpu_count())


def test_a_chunk_that_a_worker_trained_in_several_is_that_of_one():
    runs = lambda first, last: {
        "losses": np.arange(first, last),
        "metrics": {"brier": np.arange(first, last) + 0.5},
        "logits": [f"logits of run {number}" for number in range(first, last)],
    }
    whole = of_workers.joined([of_workers.cut(runs(0, 4), 3), runs(3, 5)])
    assert whole["losses"].tolist() == [0, 1, 2, 3, 4]
    assert whole["metrics"]["brier"].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert whole["logits"] == runs(0, 5)["logits"]
