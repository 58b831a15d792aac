"""Checkpoints within a run, with Orbax: a chunk of runs that is killed goes on where it was, to the same bytes.

A batch is a function of the run's key and the step, so the step is all that there is to save of the data. Beside each
checkpoint lies a line of JSON, written last: which runs it is of, and the length and checksum of each of its files.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import read_json, reason, shown
from disam_jax.dg.results import Run
from disam_jax.dg.training.evaluation import Metrics

FOLDER = "checkpoints"
# An older one is there if the newest one is damaged.
KEPT = 2


class Halfway(NamedTuple):
    """Where a chunk of runs stands.

    Attributes:
        step: Number of steps that were made.
        states: States of the runs.
        points: What was measured so far, at one point of training after the other.
        averages: Averages over the segments so far, of SWAD.
        kept: What `Keeper.so_far` returned.
    """

    step: int
    states: Any
    points: list[Metrics]
    averages: list[Any]
    kept: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a chunk of runs.

    Args:
        folder: Folder for them.
        key: What the chunk is, as JSON values; a checkpoint with another key is not used.
        every: Number of steps between two checkpoints.
        say: Called with a line about what is not used, and why.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], every: int, say: Callable[[str], None]):
        import orbax.checkpoint as ocp

        self.folder, self.every, self.say = folder, every, say
        # As it comes back from a file.
        self.key = json.loads(json.dumps(key))
        self._last = 0
        folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint after so many steps."""
        return step - self._last >= self.every

    def save(self, at: Halfway) -> None:
        """Writes a checkpoint; it counts when all of it is on disk.

        Raises:
            InputError: If the disk refuses.
        """
        import orbax.checkpoint as ocp

        fetched = jax.device_get(at)
        items = {
            "states": numbered(fetched.states),
            "points": {str(place): _present(point) for place, point in enumerate(fetched.points)},
            "averages": {str(place): numbered(average) for place, average in enumerate(fetched.averages)},
            "kept": fetched.kept,
        }
        arrays = {name: value for name, value in items.items() if value}
        try:
            with _without_alarms():
                self._manager.save(at.step, args=ocp.args.StandardSave(arrays))
            line = {"key": self.key, "files": self._files(at.step)}
            unfinished = self._line(at.step).with_suffix(".unfinished")
            unfinished.write_text(json.dumps(line))
            os.replace(unfinished, self._line(at.step))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot write a checkpoint to {shown(self.folder)}: {_reason(error)}; what was finished and the last "
                "checkpoint are kept, and the same command goes on from there"
            ) from error
        self._last = at.step
        for other in self.folder.glob("*.json"):
            if not (self.folder / other.stem).exists():
                other.unlink()

    def latest(self, like: Any) -> Halfway | None:
        """The newest checkpoint that is whole and of these runs; those that are not are removed.

        Args:
            like: States of the runs, arrays or their shapes and types.

        Returns:
            Where the chunk stands, numpy arrays; None if it is at its beginning.
        """
        import orbax.checkpoint as ocp

        for step in sorted(self._manager.all_steps(), reverse=True):
            what_is_wrong = self._wrong(step)
            if what_is_wrong is None:
                arrays = self._manager.restore(step, args=ocp.args.StandardRestore())
                leaves, structure = jax.tree.flatten(like)
                states = _leaves(arrays["states"])
                if [(each.shape, each.dtype) for each in states] == [(each.shape, each.dtype) for each in leaves]:
                    self._last = step
                    return Halfway(
                        step,
                        jax.tree.unflatten(structure, states),
                        [_metrics(point) for point in in_order(arrays["points"])],
                        [
                            jax.tree.unflatten(jax.tree.structure(like.average), _leaves(average))
                            for average in in_order(arrays.get("averages", {}))
                        ],
                        arrays.get("kept", {}),
                    )
                what_is_wrong = "is of another network or method"
            self.say(f"the checkpoint {shown(self.folder / str(step))} {what_is_wrong}: it is removed and not used")
            self._manager.delete(step)
            self._line(step).unlink(missing_ok=True)
        return None

    def remove(self) -> None:
        """Removes all of them, when the runs are finished."""
        self._manager.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _line(self, step: int) -> Path:
        return self.folder / f"{step}.json"

    def _files(self, step: int) -> dict[str, list[int]]:
        """Length and checksum of each file of a checkpoint."""
        root = self.folder / str(step)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): _checksum(path) for path in files}

    def _wrong(self, step: int) -> str | None:
        """What is wrong with a checkpoint, if anything is."""
        try:
            line = read_json(self._line(step))
        except InputError:
            return "was not finished"
        if not line.keys() >= {"key", "files"} or line["files"] != self._files(step):
            return "is damaged"
        different = _different(line["key"], self.key)
        return f"is of another {', '.join(different)}" if different else None


def checkpoints_of(
    out: Path, header: Mapping[str, Any], runs: Sequence[Run], every: int, save: str, say: Callable[[str], None]
) -> Checkpoints:
    """The checkpoints of a chunk of runs of a sweep.

    Args:
        out: Folder of the sweep.
        header: From `make_header`.
        runs: Chunk of runs of one method.
        every: Number of steps between two checkpoints.
        save: Which weights are kept, a key of `SAVES`.
        say: Called with a line about what is not used, and why.

    Returns:
        Checkpoints.

    Raises:
        InputError: If there can be no folder for them.
    """
    names = [[run.target, run.seed, run.candidate] for run in runs]
    key = {
        **{name: header[name] for name in ("version", "data", "setting", "metrics") if name in header},
        "method": runs[0].method,
        "save": save,
        "runs": names,
        "hparams": [dict(run.hparams) for run in runs],
    }
    folder = out / FOLDER / f"{runs[0].method}-{zlib.crc32(json.dumps(names).encode()):08x}"
    try:
        return Checkpoints(folder, key, every, say)
    except OSError as error:
        raise InputError(f"cannot keep checkpoints in {shown(folder)}: {error.strerror or error}") from error


@contextlib.contextmanager
def _without_alarms() -> Iterator[None]:
    """Orbax logs an error with its traceback, and raises it too."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: OSError | ValueError) -> str:
    """What the system said, which reaches us as a number in a text of TensorStore."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return reason(error) if number is None else os.strerror(int(number[1]))


def _different(one: Any, other: Mapping[str, Any]) -> list[str]:
    """Names of what differs, of the values inside where only some of these do."""
    one = one if isinstance(one, dict) else {}
    found = []
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        if a != b:
            inside = _different(a, b) if isinstance(a, dict) and isinstance(b, dict) else []
            found += [f"{name}.{each}" for each in inside] or [name]
    return [shown(name) for name in found]


def _checksum(path: Path) -> list[int]:
    crc, length = 0, 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            crc, length = zlib.crc32(part, crc), length + len(part)
    return [length, crc]


def numbered(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by their number: names of a file know nothing of the classes of its nodes.

    Example:
        >>> numbered({"kernel": np.int32(3)})
        {'0': array(3, dtype=int32)}
    """
    return {str(place): np.asarray(leaf) for place, leaf in enumerate(jax.tree.leaves(tree))}


def in_order(numbered: Mapping[str, Any]) -> list[Any]:
    """What `numbered` numbered.

    Example:
        >>> in_order({"1": "b", "0": "a"})
        ['a', 'b']
    """
    return [numbered[str(place)] for place in range(len(numbered))]


def _leaves(numbered: Mapping[str, Any]) -> list[np.ndarray]:
    return [np.asarray(each) for each in in_order(numbered)]


def _present(point: Metrics) -> dict[str, Any]:
    return {name: value for name, value in point._asdict().items() if value is not None and len(value)}


def _metrics(stored: Mapping[str, Any]) -> Metrics:
    arrays = {"metrics": {}, **jax.tree.map(np.asarray, dict(stored))}
    return Metrics._make(arrays.get(name) for name in Metrics._fields)
