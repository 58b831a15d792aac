"""`--log`: what a sweep records along training, in TensorBoard or Weights & Biases as well as in the results file."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from disam_jax.dg.reading import shown

SPLITS = ("train", "validation")
Record = Mapping[str, Any]
OnRecords = Callable[[Sequence[Record], Mapping[str, Any]], None]


class Log(Protocol):
    """Where the history of runs goes."""

    def run(self, name: str, record: Record, history: Mapping[int, Mapping[str, float]]) -> None:
        """Writes the history of one run.

        Args:
            name: Name of the run, which can be a file's.
            record: The run as the results file has it.
            history: Values by name at each step at which the run was measured.
        """
        ...


def history(record: Record, header: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """What was measured of a run along training.

    Args:
        record: The run as the results file has it.
        header: Header of that file.

    Returns:
        For each step, accuracy and loss of each domain on its training and its validation split; a loss that was not
        finite is left out.

    Example:
        >>> header = {"steps": [0], "data": {"domains": {"photo": 9}}}
        >>> record = {"accuracy": [[[0.5], [0.25]]], "losses": [[[1.5], [None]]]}
        >>> history(record, header)
        {0: {'accuracy/photo/train': 0.5, 'loss/photo/train': 1.5, 'accuracy/photo/validation': 0.25}}
    """
    found: dict[int, dict[str, float]] = {}
    for place, step in enumerate(header["steps"]):
        values = found[step] = {}
        for number, split in enumerate(SPLITS):
            for of, domain in enumerate(header["data"]["domains"]):
                for quantity, measured in (("accuracy", record["accuracy"]), ("loss", record["losses"])):
                    value = measured[place][number][of]
                    if value is not None:
                        values[f"{quantity}/{shown(domain)}/{split}"] = value
    return found


def run_name(record: Record, header: Mapping[str, Any]) -> str:
    """A name for a run that can be that of a folder.

    Example:
        >>> record = {"method": "DISAM", "target": 0, "seed": 3, "candidate": 1}
        >>> run_name(record, {"data": {"domains": {"Real World": 9}}})
        'DISAM-0-Real_World-seed3-candidate1'
    """
    target = list(header["data"]["domains"])[record["target"]]
    plain = re.sub(r"[^\w+.-]", "_", f"{record['method']}-{record['target']}-{target}", flags=re.ASCII)
    return f"{plain}-seed{record['seed']}-candidate{record['candidate']}"


class TensorBoard:
    """Event files in a folder `tensorboard` of the results.

    Args:
        out: Folder of the results.
        header: Header of the results file.
    """

    def __init__(self, out: Path, header: Mapping[str, Any]):
        del header
        self._folder = out / "tensorboard"

    def run(self, name: str, record: Record, history: Mapping[int, Mapping[str, float]]) -> None:
        """See `Log`."""
        import tensorboardX

        del record
        with tensorboardX.SummaryWriter(str(self._folder / name)) as writer:
            for step, values in history.items():
                for quantity, value in values.items():
                    writer.add_scalar(quantity, value, step)


class WandB:
    """A run of Weights & Biases for each run, in its project `disam-jax`, as its variables such as WANDB_MODE say.

    Args:
        out: Folder of the results, in which it keeps its files.
        header: Header of the results file.
    """

    def __init__(self, out: Path, header: Mapping[str, Any]):
        self._out, self._header = out, header

    def run(self, name: str, record: Record, history: Mapping[int, Mapping[str, float]]) -> None:
        """See `Log`."""
        import wandb

        fixed = {key: record[key] for key in ("method", "target", "seed", "candidate")}
        config = {**self._header["setting"], **record["hyper"], **fixed}
        run = wandb.init(
            project="disam-jax",
            group=shown(self._header["data"]["name"]),
            name=name,
            config=config,
            dir=str(self._out),
            settings=wandb.Settings(silent=True),
        )
        for step, values in history.items():
            run.log(dict(values), step=step)
        run.finish()


# What --log takes, with the package that it needs and how to get that.
LOGS: dict[str, tuple[Callable[[Path, Mapping[str, Any]], Log], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboardX", 'pip install "disam-jax[dg,tensorboard]"'),
    "wandb": (WandB, "wandb", "pip install wandb"),
}


@contextlib.contextmanager
def logging_to(names: Sequence[str], out: Path, say: Callable[[str], None]) -> Iterator[OnRecords]:
    """Logs the runs of finished chunks in a thread of its own, so that no training waits; at the end all are logged.

    Args:
        names: Keys of `LOGS`.
        out: Folder of the results.
        say: Called with a line where a log fails, which ends that log and nothing else.

    Yields:
        Function of records of runs and the header of their results file.
    """
    opened: dict[str, Log] = {}
    failed: set[str] = set()

    def log(records: Sequence[Record], header: Mapping[str, Any]) -> None:
        for name in names:
            if name in failed:
                continue
            try:
                to = opened.setdefault(name, LOGS[name][0](out, header))
                for record in records:
                    to.run(run_name(record, header), record, history(record, header))
            except Exception as error:  # whatever another package raises: the runs are in the results file
                failed.add(name)
                say(f"--log {name} ends here, and training goes on: {type(error).__name__}: {shown(error)}")

    with ThreadPoolExecutor(1) as thread:

        def later(records: Sequence[Record], header: Mapping[str, Any]) -> None:
            if names:
                thread.submit(log, records, header)

        yield later
