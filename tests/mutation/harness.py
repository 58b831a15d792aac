"""Runs tests against a mutant in a forked process: no file of the tree is changed, and imports are paid for once.

The process that forks has imported what the tests need, but neither the package nor a test, and has not started a JAX
backend: its threads would not survive a fork. Compiled programs are shared through the persistent cache.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The parent has imported plugins of pytest, which then cannot rewrite their assertions.
QUIET = "ignore::pytest.PytestAssertRewriteWarning"
# Of a dealt test every case, since a fault may be seen in one of them alone, and what else is quick enough.
OPTIONS = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", QUIET, "-m", "not slow or rest")


class Fault(NamedTuple):
    """A module by its full name, with the source that stands in for its file."""

    name: str
    path: Path
    source: str


class Outcome(NamedTuple):
    """What a run of tests said.

    Attributes:
      status: `killed`, `survived` or `timeout`.
      seconds: How long the run took.
      by: The test that failed first, if one did.
      times: Seconds of each test that ran.
    """

    status: str
    seconds: float
    by: str
    times: dict[str, float]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, with another source."""

    def __init__(self, fault: Fault):
        self.fault = fault

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.fault.name:
            return None
        loader = _Loader(fullname, str(self.fault.path))
        loader.source = self.fault.source
        return importlib.util.spec_from_file_location(fullname, self.fault.path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    source = ""

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Watch:
    """A pytest plugin: orders the tests, and writes down what they took and which one failed."""

    def __init__(self, order: "Order", finder: _Finder | None):
        self.order, self.finder, self.times, self.failed = order, finder, {}, ""
        self.left = order.budget

    def pytest_configure(self) -> None:
        if self.finder is not None:
            # Before pytest's own, which reads a module from its file when that is among the arguments.
            sys.meta_path[:] = [self.finder, *(each for each in sys.meta_path if each is not self.finder)]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: -self.order.worth(item.nodeid))
        until = itertools.accumulate(self.order.times.get(item.nodeid, 0.0) for item in items)
        items[:] = [item for item, seconds in zip(items, until, strict=True) if seconds <= self.left]
        self.left -= sum(self.order.times.get(item.nodeid, 0.0) for item in items)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.times[report.nodeid] = self.times.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (not collected)"


class Order:
    """The order of tests that ends runs soonest: those that failed often and take little time come first.

    Args:
      budget: Seconds of tests in a run; the last in the order are left out.
    """

    def __init__(self, budget: float = math.inf) -> None:
        self.budget = budget
        self.kills: Counter[str] = Counter()
        self.times: dict[str, float] = {}

    def learn(self, outcome: Outcome) -> None:
        self.times = {**outcome.times, **self.times}
        if outcome.by:
            self.kills[outcome.by] += 1

    def worth(self, test: str) -> float:
        return (self.kills[test] + 0.05) / (self.times.get(test, 0.5) + 0.05)

    def files(self, arguments: Iterable[str]) -> list[str]:
        """The files of tests, those first that end most runs for their time; at first in the order given."""

        def worth(file):
            tests = [test for test in {*self.times, *self.kills} if test.partition("::")[0] == file]
            return sum(self.kills[test] for test in tests) / (sum(self.times.get(test, 0.5) for test in tests) + 2)

        return sorted(arguments, key=lambda file: -worth(file))


@contextlib.contextmanager
def compiled_programs() -> Iterator[None]:
    """One persistent cache of compiled programs for all runs; that of the environment if it names one."""
    own = None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        own = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled_")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        yield
    finally:
        if own:
            del os.environ["JAX_COMPILATION_CACHE_DIR"]
            shutil.rmtree(own, ignore_errors=True)


def import_what_tests_need(names: Iterable[str]) -> None:
    """Imports these packages before the first fork."""
    for name in names:
        importlib.import_module(name)


class Run:
    """One run of pytest, in a child of this process.

    Args:
      fault: What to put into the package; None leaves it as it is.
      files: Files of tests.
      root: Folder in which the tests run; it is put in front of the import path.
      order: Decides which test runs first.
      limit: Seconds after which the run is ended.
    """

    def __init__(self, fault: Fault | None, files: Sequence[str], root: Path, order: Order, limit: float):
        self.folder = Path(tempfile.mkdtemp(prefix="mutant_"))
        self.began, self.limit = time.monotonic(), limit
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _in_child(fault, files, root, order, self.folder, limit)

    def outcome(self) -> Outcome | None:
        """The outcome, or None while the run goes on."""
        seconds = time.monotonic() - self.began
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            if seconds < self.limit:
                return None
            self.end()
            return self._close(Outcome("timeout", seconds, "", {}))
        if os.WIFSIGNALED(status):
            return self._close(Outcome("killed", seconds, f"crashed, signal {os.WTERMSIG(status)}", {}))
        report = self.folder / "report.json"
        found = json.loads(report.read_text()) if report.exists() else {"code": -1, "times": {}, "failed": ""}
        # 1: a test failed. 2: a test file could not be imported. 0: all passed. Anything else is no verdict.
        if found["code"] not in (0, 1, 2):
            log = (self.folder / "log").read_text()[-4000:]
            self._close(Outcome("", 0.0, "", {}))
            raise RuntimeError(f"pytest ended with code {found['code']}, so the run says nothing:\n{log}")
        verdict = "survived" if found["code"] == 0 else "killed"
        return self._close(Outcome(verdict, seconds, found["failed"], found["times"]))

    def end(self) -> None:
        """Ends the run and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _close(self, outcome: Outcome) -> Outcome:
        shutil.rmtree(self.folder, ignore_errors=True)
        return outcome


def _in_child(fault: Fault | None, files: Sequence[str], root: Path, order: Order, folder: Path, limit: float) -> None:
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(math.ceil(limit) + 10)  # where no parent is left to end it
        with open(folder / "log", "wb") as log, open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(root)
        sys.path.insert(0, str(root))
        import pytest

        watch = _Watch(order, _Finder(fault) if fault else None)
        # File by file, for what the first file finds spares the collection of the others.
        for file in order.files(files):
            code = pytest.main([file, *OPTIONS], plugins=[watch])
            # 5: no test was left to run, because none fits into the budget or all of the file are slow ones.
            if code not in (0, 5):
                break
        else:
            code = 0 if watch.times else 5
        if fault is not None:
            loaded = sys.modules.get(fault.name)
            assert loaded is None or isinstance(loaded.__loader__, _Loader), f"{fault.name} was not the mutant"
        report = {"code": int(code), "times": watch.times, "failed": watch.failed}
        (folder / "report.json").write_text(json.dumps(report))
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        # Without the handlers that the parent registered, such as the removal of the shared cache.
        os._exit(0)


def run_all(
    runs: Iterable[Callable[[], Run]], jobs: int, done: Callable[[int, Outcome], None], pause: float = 0.05
) -> None:
    """Starts the runs, so many at a time, and hands over each outcome with the number of its run."""
    waiting, going = iter(enumerate(runs)), {}
    try:
        while True:
            while len(going) < jobs and (following := next(waiting, None)) is not None:
                going[following[0]] = following[1]()
            if not going:
                return
            for number, run in list(going.items()):
                if (outcome := run.outcome()) is not None:
                    del going[number]
                    done(number, outcome)
            time.sleep(pause)
    finally:
        for run in going.values():
            run.end()
