"""The models of a sweep: which runs have one, which of these are missing, and what their records say."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, is_folder, shown
from disam_jax.dg.results import SAVES, TRAIN, VALIDATION, Run, validation_score
from disam_jax.dg.saving.blueprint import STANDARDISATION, Blueprint
from disam_jax.dg.saving.files import (
    RECORD,
    copy_model,
    is_kept,
    model_name,
    read_record,
    run_record,
    write_frozen,
    write_model,
)
from disam_jax.dg.sweep.results_file import Store
from disam_jax.dg.sweep.results_folder import MODELS
from disam_jax.dg.sweep.schema import Name
from disam_jax.dg.training.averaging import SWAD

CHOSEN_BY = "the highest accuracy on the source domains' validation splits, averaged over them"


class ModelStore:
    """The models of a sweep on disk, in the folder `models` of its results.

    Args:
        out: Folder of the results.
        save: Which weights are kept, a key of `SAVES`.
        blueprint: (name of a method) -> its blueprint; called when a model is written.
    """

    def __init__(self, out: Path, save: str, blueprint: Callable[[str], Blueprint]):
        self.folder, self.save, self._blueprint = out / MODELS, save, blueprint
        self._frozen: dict[str, str | None] = {}
        self._scores: dict[Name, float] = {}

    def wanted(self, runs: Iterable[Run], store: Store) -> list[Run]:
        """Of finished runs, those that have a model, in their order.

        Args:
            runs: Runs of a plan.
            store: Results, with those that are finished.

        Returns:
            All of them, or for "best" the one of each method, target and seed that is chosen among those that are
            finished.
        """
        finished = [run for run in runs if store.has(run)]
        if self.save == "none":
            return []
        if self.save == "last":
            return finished
        best: dict[tuple[str, int, int], tuple[float, int]] = {}
        for run in finished:
            # Ties go to the earlier candidate, as in the report.
            each = (self._score(run, store), -run.candidate)
            best[run[:3]] = max(best.get(run[:3], each), each)
        return [run for run in finished if -best[run[:3]][1] == run.candidate]

    def _score(self, run: Run, store: Store) -> float:
        name = run[:4]
        if name not in self._scores:
            swad = store.written.header["setting"]["averaging"] in SWAD
            self._scores[name] = best_score(store.records[name], swad)
        return self._scores[name]

    def missing(self, runs: Iterable[Run], store: Store) -> list[Run]:
        """Of finished runs, those whose model is wanted and not there."""
        return [run for run in self.wanted(runs, store) if not self.has(run, store)]

    def has(self, run: Run, store: Store) -> bool:
        """Whether the model of a run is there, whole."""
        return is_kept(self.folder, self.name(run, store), run, store.written.header["data"]["fingerprint"])

    def name(self, run: Run, store: Store) -> str:
        """The name of the files of a run's model."""
        return model_name(run, list(store.written.header["data"]["domains"])[run.target], self.save)

    def write(self, chunk: Sequence[Run], measured: Mapping[str, Any], runs: Iterable[Run], store: Store) -> None:
        """Writes the models of a chunk of runs that are in the results.

        Args:
            chunk: R runs.
            measured: What their runner returned.
            runs: Runs of the plan.
            store: Results.

        Raises:
            InputError: If the system refuses.
        """
        if self.save == "none":
            return
        names = {run[:4] for run in self.wanted(runs, store)}
        header, kept = store.written.header, measured["kept"]
        for place, run in enumerate(chunk):
            if run[:4] not in names:
                continue
            blueprint = self._blueprint(run.method)
            if run.method not in self._frozen:
                self._frozen[run.method] = write_frozen(self.folder, blueprint.frozen)
            named = {_dotted(name): np.asarray(each[place]) for name, each in kept["tensors"].items()}
            tensors = {name: named[name] for name in blueprint.trained}
            point = int(kept["point"][place])
            record = model_record(run, point, store.records[run[:4]], header, blueprint, self.save)
            whole = {**record, "tensors": {"frozen": self._frozen[run.method]}}
            write_model(self.folder, self.name(run, store), whole, tensors)

    def begin(self, runs: Sequence[Run], header: Mapping[str, Any]) -> str:
        """Checks, before anything takes long, that the models of runs can be written.

        Args:
            runs: Runs of the plan, at least one.
            header: Header of the results.

        Returns:
            How much they take on disk, in a line.

        Raises:
            InputError: If a file stands in the way that is none of ours, or the disk has less room.
        """
        if exists(self.folder) and not is_folder(self.folder):
            raise InputError(f"--save writes to the folder {shown(self.folder)}, where a file is: move it")
        domains = list(header["data"]["domains"])
        for name in dict.fromkeys(model_name(run, domains[run.target], self.save) for run in runs):
            if exists(self.folder / f"{name}{RECORD}"):
                read_record(self.folder / f"{name}{RECORD}")
        each = {method: self._blueprint(method) for method in dict.fromkeys(run.method for run in runs)}
        files = {run[:3] if self.save == "best" else run[:4] for run in runs}
        own = sum(sum(each[name[0]].trained.values()) for name in files)
        # The methods share a file, but for a network of their own.
        shared = {tuple(sorted(one.frozen)): sum(part.nbytes for part in one.frozen.values()) for one in each.values()}
        needed = own + sum(shared.values())
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        # What is there already is replaced, if it changes.
        there = sum(path.stat().st_size for path in self.folder.glob("*")) if existing == self.folder else 0
        free = shutil.disk_usage(existing).free + there
        if needed > free:
            raise InputError(
                f"--save {self.save} takes {in_bytes(needed)} in {shown(self.folder)}, where {in_bytes(free)} are "
                "free: make room, or take --save best or none"
            )
        frozen = f", {in_bytes(sum(shared.values()))} of them weights that no run trains" if any(shared) else ""
        return f"--save {self.save}: {len(files)} models take {in_bytes(needed)} in {shown(self.folder)}{frozen}"


def copy_models(save: str, folders: Sequence[Path], out: Path, runs: Sequence[Run], store: Store) -> None:
    """Copies the models of shards into the folder of the whole.

    Args:
        save: Which of them, a key of `SAVES`.
        folders: Folders of the shards.
        out: Folder of the whole.
        runs: All runs.
        store: Results of the whole. Of "best", the models of those runs are copied that are chosen among all.

    Raises:
        InputError: If a file of a model is not whole, or the system refuses.
    """

    def none(method: str) -> Blueprint:
        raise AssertionError(method)

    whole = ModelStore(out, save, none)
    for run in whole.missing(runs, store):
        for folder in folders:
            if ModelStore(folder, save, none).has(run, store):
                copy_model(folder / MODELS, whole.folder, whole.name(run, store))
                break


def _dotted(name: str) -> str:
    return name if name in STANDARDISATION else f"network.{name}"


def in_bytes(number: float) -> str:
    """A number of bytes for a reader.

    Example:
        >>> in_bytes(980), in_bytes(22_400), in_bytes(94 * 2**20)
        ('980 bytes', '21.9 KiB', '94.0 MiB')
    """
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    place = 0
    while number >= 1000 and place < len(units) - 1:
        number, place = number / 1024, place + 1
    return f"{number:.0f} {units[0]}" if place == 0 else f"{number:.1f} {units[place]}"


def best_score(record: Mapping[str, Any], last: bool) -> float:
    """By what a run is chosen among its candidates: its best point, or its last one.

    Args:
        record: What was measured of it, of a results file.
        last: Whether the last point alone counts.

    Returns:
        Score of `validation_score`.

    Example:
        >>> point = lambda right: [[0.0, 0.0], [right, 0.0]]
        >>> record = {"target": 1, "accuracy": [point(0.0), point(0.75), point(0.5)], "losses": [point(1.0)] * 3}
        >>> best_score(record, last=False), best_score(record, last=True)
        (0.75, 0.5)
    """
    accuracy, losses = (np.array(record[name], np.float64) for name in ("accuracy", "losses"))
    scores = validation_score(accuracy, losses, record["target"])
    return float(scores[-1] if last else scores[1:].max())


def model_record(
    run: Run, point: int, measured: Mapping[str, Any], header: Mapping[str, Any], blueprint: Blueprint, save: str
) -> dict[str, Any]:
    """What the JSON file of a model says, but for its tensors.

    Args:
        run: Run.
        point: Number of the measured point whose weights these are.
        measured: What was measured of the run, of a results file.
        header: Header of the results.
        blueprint: Blueprint of its method.
        save: Which weights these are, a key of `SAVES`.

    Returns:
        JSON values.
    """
    domains = list(header["data"]["domains"])
    target = domains[run.target]
    averaging = header["setting"]["averaging"]
    parts = {"training": TRAIN, "validation": VALIDATION}
    numbers = {
        domain: {
            part: {"accuracy": measured["accuracy"][point][row][place], "loss": measured["losses"][point][row][place]}
            for part, row in parts.items()
        }
        for place, domain in enumerate(domains)
    }
    return {
        "versions": {"disam_jax": header["version"]["disam_jax"], **blueprint.versions},
        "network": dict(blueprint.made),
        "classes": list(blueprint.classes),
        "inputs": dict(blueprint.inputs),
        "data": {
            "name": header["data"]["name"],
            "fingerprint": header["data"]["fingerprint"],
            "trained_on": [domain for domain in domains if domain != target],
            "target": target,
            "of_target": dict(blueprint.targets[target]),
        },
        "run": {**run_record(run), "target": target, "step": header["steps"][point], "setting": header["setting"]},
        "saved": {
            "which": save,
            "meaning": SAVES[save],
            "chosen_by": CHOSEN_BY if save == "best" and averaging not in SWAD else None,
            "weights": averaging,
        },
        "measured": numbers,
    }
