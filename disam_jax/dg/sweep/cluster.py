"""Tasks on the workers of a Dask cluster: started on this machine, or one that runs already.

Nothing here asks jax for a device: the client of a cluster leaves them to the workers.
"""

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, reason, shown

T = TypeVar("T")

# How often the workers are counted.
LOOK_SECONDS = 5.0
# A task that so many workers died of is not given to another one.
MOST_DEATHS = 10
START_SECONDS = 120.0
# A scheduler that does not answer for so long is gone. It computes nothing, so that it is never long busy.
GONE_SECONDS = 60.0
CLOSE_SECONDS = 5.0
GOES_ON = "what was finished is kept, and the same command goes on from there"
GONE = f"the scheduler is gone: start it again; {GOES_ON}"
SILENT_SECONDS = 300
# Makes several devices of a CPU.
OF_CORES = "--xla_force_host_platform_device_count"


class Devices(NamedTuple):
    """What a process of this machine has.

    Attributes:
        platform: "cpu", "gpu" or another one of jax.
        count: Number of devices; of a CPU the number of its cores.
    """

    platform: str
    count: int


def devices_here() -> Devices:
    """The devices of this machine, asked in a process of its own, since asking takes an accelerator's memory.

    Raises:
        InputError: If jax finds none.
    """
    ask = "import jax; print(jax.default_backend(), jax.local_device_count())"
    flags = {key: each for key, each in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", ask], env=flags, capture_output=True, text=True)
    words = done.stdout.split()
    if done.returncode or len(words) != 2:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise InputError(f"jax finds no device on this machine: {shown(last)}")
    platform, count = words[0], int(words[1])
    return Devices(platform, (os.cpu_count() or 1) if platform == "cpu" else count)


def worker_environments(devices: Devices, workers: int, flags: str = "") -> list[dict[str, str]]:
    """The variables by which each worker of this machine gets its share of it.

    Args:
        devices: What the machine has.
        workers: Number of workers.
        flags: XLA_FLAGS of this process; what they say of the number of devices is replaced.

    Returns:
        Variables for each worker: as many devices as it has cores, or its own accelerator.

    Raises:
        InputError: If there are more workers than accelerators.

    Example:
        >>> worker_environments(Devices("gpu", 2), 2)
        [{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '1'}]
        >>> worker_environments(Devices("cpu", 8), 4)[0]
        {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    """
    if devices.platform == "cpu":
        others = re.sub(rf"{OF_CORES}=\d+", "", flags).split()
        return [{"XLA_FLAGS": " ".join([*others, f"{OF_CORES}={max(1, devices.count // workers)}"])}] * workers
    if workers > devices.count:
        raise InputError(f"--workers must be at most {devices.count}, the number of accelerators here, got {workers}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(place) for place in range(devices.count)]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[:workers]]


@contextlib.contextmanager
def local_cluster(environments: Sequence[Mapping[str, str]]) -> Iterator[Any]:
    """Processes on this machine, and a client of them.

    Args:
        environments: Variables for each worker, beside those of this process.

    Yields:
        Client. A worker that dies is replaced; all end with this process.
    """
    from distributed import Client, Nanny, Scheduler, SpecCluster

    # One task at a time in each; no limit of memory, since the programs are made to fit already.
    options = {"nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    workers = {
        place: {"cls": Nanny, "options": {**options, "env": dict(each)}} for place, each in enumerate(environments)
    }
    of_scheduler = {
        "dashboard": False,
        "dashboard_address": ":0",
        "host": "127.0.0.1",
        "port": 0,
        "allowed_failures": MOST_DEATHS,
    }
    scheduler = {"cls": Scheduler, "options": of_scheduler}
    with (
        engine(),
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(len(environments), timeout=START_SECONDS)
        yield client


@contextlib.contextmanager
def running_cluster(address: str | None, file: Path | None) -> Iterator[Any]:
    """A client of a scheduler that runs already.

    Args:
        address: Its address, tcp://HOST:PORT.
        file: The file that it wrote, in the place of an address.

    Yields:
        Client.

    Raises:
        InputError: If it cannot be reached, or no worker comes.
    """
    from distributed import Client

    if file is not None and not exists(file):
        raise InputError(f"--scheduler-file {shown(file)} is not there: start dask scheduler --scheduler-file with it")
    where = f"--scheduler-file {shown(file)}" if file is not None else f"--scheduler {shown(address)}"
    with contextlib.ExitStack() as opened:
        opened.enter_context(engine())
        given = {"address": address} if file is None else {"scheduler_file": str(file)}
        try:
            client = Client(**given, timeout=START_SECONDS)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot reach the scheduler of {where}: {reason(error)}") from error
        opened.callback(_close, client)
        try:
            client.wait_for_workers(1, timeout=START_SECONDS)
        except TimeoutError as error:
            raise InputError(
                f"the scheduler of {where} has no worker after {START_SECONDS:.0f} s: start dask worker there"
            ) from error
        yield client


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """Sets the engine up for programs that keep all cores busy, in which a process may not answer for long.

    Its alarms are kept from the user, who is told in lines of our own what they mean.
    """
    import dask
    import distributed  # noqa: F401, it sets the levels of some loggers when it is imported

    for name in [each for each in logging.root.manager.loggerDict if each.split(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    patient = {"distributed.comm.timeouts.connect": SILENT_SECONDS, "distributed.comm.timeouts.tcp": SILENT_SECONDS}
    with dask.config.set({**patient, "distributed.scheduler.worker-ttl": f"{4 * SILENT_SECONDS}s"}):
        yield


def finished(
    client: Any, function: Callable[..., Any], tasks: Sequence[Sequence[Any]], say: Callable[[str], None]
) -> Iterator[tuple[int, Any]]:
    """The results of tasks, as they come. A task whose worker dies goes to another one.

    Args:
        client: Client of a cluster.
        function: What a worker calls; it must be importable there.
        tasks: Arguments of each task.
        say: Called with a line when a worker is lost.

    Yields:
        Number of a task, and its result.

    Raises:
        InputError: If a task raises it, or so many workers died of a task that another one would too.
    """
    from asyncio import CancelledError
    from concurrent.futures import CancelledError as FutureCancelledError

    from distributed import KilledWorker, wait

    left = iter(enumerate(tasks))
    pending: dict[Any, int] = {}
    known, room = _workers(client)
    alone = False
    while True:
        for number, arguments in left:
            # A function of these arguments need not give the same twice to the engine: it is not asked to remember it.
            pending[client.submit(function, *arguments, pure=False)] = number
            if len(pending) >= room:
                break
        if not pending:
            return
        # Tasks are cancelled where the connection to the scheduler is lost, which is asked for next.
        with contextlib.suppress(TimeoutError, CancelledError, FutureCancelledError):
            wait(list(pending), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
        here, room = _workers(client)
        for _ in known - here:
            say("a worker is lost; its chunk goes to another one")
        if not here and not alone:
            say("no worker is left: waiting for one")
        known, alone = here, not here
        for future in [each for each in pending if each.done()]:
            number = pending.pop(future)
            try:
                result = future.result(timeout=LOOK_SECONDS)
            except TimeoutError:
                if future.status == "error":
                    raise
                # Its worker died before the result was fetched: it is made again.
                pending[future] = number
                continue
            except KilledWorker as error:
                raise InputError(
                    "several workers died while they trained one chunk: it may take more memory than they have, so ask "
                    f"for fewer --runs-at-once; {GOES_ON}"
                ) from error
            except (CancelledError, FutureCancelledError) as error:
                raise InputError(GONE) from error
            except ModuleNotFoundError as error:
                name = shown(error.name)
                raise InputError(f"a worker has no package {name}: install it there; {GOES_ON}") from error
            yield number, result


def of_each(client: Any, function: Callable[[], Any]) -> list[Any]:
    """What a function returns on each worker.

    Raises:
        InputError: If the scheduler is gone.
    """
    with reaching(client):
        return list(within(GONE_SECONDS, lambda: client.run(function)).values())


@contextlib.contextmanager
def reaching(client: Any) -> Iterator[None]:
    """For what asks the scheduler of a client.

    Raises:
        InputError: If it is gone.
    """
    # A client that has lost its connection tries for long to have it again, and has given up its tasks already.
    if client.status != "running":
        raise InputError(GONE)
    try:
        yield
    except OSError as error:
        raise InputError(GONE) from error


def _close(client: Any) -> None:
    """Closes a client, also one whose scheduler does not answer."""
    with contextlib.suppress(OSError):
        within(CLOSE_SECONDS, client.close)


def within(seconds: float, function: Callable[[], T]) -> T:
    """What a function returns, if it does so in time. The engine's own timeouts wait until what they cancel has ended.

    Raises:
        TimeoutError: If it does not; it is left behind.

    Example:
        >>> within(60.0, lambda: 3)
        3
    """
    found: Future[T] = Future()

    def call() -> None:
        try:
            found.set_result(function())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return found.result(timeout=seconds)


def _workers(client: Any) -> tuple[set[str], int]:
    """The processes that work, and how many tasks they can have.

    A task waits at each, so that no worker waits for the client. It would be lost to the others, though, at a worker of
    several threads, which takes it for begun.
    """
    with reaching(client):
        # Not what the client remembers, `scheduler_info`: it forgets the workers each time that it asks by itself.
        identity = lambda: client.sync(client.scheduler.identity, n_workers=-1)
        workers = within(GONE_SECONDS, identity)["workers"]
    room = sum(2 if each["nthreads"] == 1 else 1 for each in workers.values())
    return {f"{each['id']} {address}" for address, each in workers.items()}, max(1, room)
