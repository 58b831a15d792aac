"""The shards of a sweep put together: checked to belong together, and no run lost or doubled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown
from disam_jax.dg.results import SAVES, Results, Run
from disam_jax.dg.sweep.logits_files import check_logits, logits_path
from disam_jax.dg.sweep.models import copy_models
from disam_jax.dg.sweep.results_file import name_of, open_store, planned, read_written, unlike
from disam_jax.dg.sweep.results_folder import check_out, read_manifest
from disam_jax.dg.sweep.shards import Shard, merged_command


def merge(folders: Sequence[Path], out: Path, select: str | None = None) -> Results:
    """Puts the shards of a sweep together.

    Args:
        folders: Folders of all shards, in any order.
        out: Folder of the whole, new, or one that was not finished.
        select: Which runs and points the report will have; that of the first folder by default.

    Returns:
        Results, as of one process.

    Raises:
        InputError: If the folders do not belong together, a run is missing or there twice, or the whole cannot be
            written. Nothing has been written then but what was written before a disk was full.
    """
    read = {folder: read_written(folder) for folder in folders}
    header = check_shards({folder: written.header for folder, written in read.items()}, folders)
    check_programs({folder: written.programs for folder, written in read.items()})
    for folder, written in read.items():
        names = planned(written.header)
        foreign = written.records.keys() - {*names}
        if foreign:
            raise InputError(
                f"{shown(folder)} has {len(foreign)} runs that do not fall to its shard, "
                f"{Shard(*written.header['shard'])}: remove their lines"
            )
        missing = [name for name in names if name not in written.records]
        if missing:
            raise InputError(
                f"{shown(folder)}, shard {Shard(*written.header['shard'])}, lacks {len(missing)} of its "
                f"{len(names)} runs: start its command again, and merge when it has ended"
            )
        if written.header["setting"].get("keep_logits"):
            check_logits(folder, written.chunk_runs(), written.header)
    if any(out.resolve() == folder.resolve() for folder in folders):
        raise InputError(f"--out {shown(out)} is one of the shards: give a folder of its own")
    check_out(out)
    manifest = read_manifest(folders[0])
    header = {**header, "command": merged_command(header["command"], out)}
    keeps_logits = bool(read[folders[0]].header["setting"].get("keep_logits"))
    with open_store(out, header, select=select or (manifest.select if manifest else "validation")) as store:
        for method in header["methods"]:
            for written in read.values():
                if method in written.programs and method not in store.programs:
                    store.program(method, written.programs[method])
            for folder, written in read.items():
                for chunk in written.chunks_of(method):
                    records = [record for record in chunk.records if name_of(record) not in store.records]
                    if records:
                        logits = logits_path(folder, method, chunk.number) if keeps_logits else None
                        store.copy(method, records, chunk.seconds, chunk.version, logits)
        runs = [Run(*name, hparams=store.records[name]["hyper"]) for name in planned(header)]
        for save in SAVES:
            copy_models(save, folders, out, runs, store)
        return store.results(runs)


def check_shards(headers: Mapping[Path, Mapping[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    """Checks that folders hold all shards of one sweep, each once.

    Args:
        headers: Header of each folder.
        folders: Folders as they were given.

    Returns:
        Header of the whole, with the command of shard 0.

    Raises:
        InputError: If they do not.
    """
    first = folders[0]
    twice = [
        folder for place, folder in enumerate(folders) if folder.resolve() in [f.resolve() for f in folders[:place]]
    ]
    if twice:
        raise InputError(f"{shown(twice[0])} is given twice: give each shard once")
    for folder, header in headers.items():
        if "shard" not in header:
            raise InputError(f"{shown(folder)} holds a whole sweep, no shard: merge takes folders of sweep --shard I/N")
    whole = {
        folder: {key: each for key, each in header.items() if key != "shard"} for folder, header in headers.items()
    }
    for folder, header in whole.items():
        found = unlike(whole[first], header, strict=True)
        if found:
            raise InputError(
                f"{shown(first)} and {shown(folder)} are shards of different sweeps: {found} (there is "
                f"{shown(first)}, here is {shown(folder)})"
            )
    shards = {folder: Shard(*header["shard"]) for folder, header in headers.items()}
    count = shards[first].count
    by_index: dict[int, Path] = {}
    for folder, shard in shards.items():
        if shard.count != count:
            raise InputError(f"{shown(first)} is shard {shards[first]}, {shown(folder)} is {shard}: of different deals")
        if shard.index in by_index:
            raise InputError(f"{shown(by_index[shard.index])} and {shown(folder)} are both shard {shard}: give one")
        by_index[shard.index] = folder
    lacking = [str(Shard(index, count)) for index in range(count) if index not in by_index]
    if lacking:
        more = ", ..." if len(lacking) > 5 else ""
        raise InputError(f"{len(lacking)} of {count} shards are missing: {', '.join(lacking[:5])}{more}: give them too")
    return whole[by_index[0]]


def check_programs(programs: Mapping[Path, Mapping[str, Mapping[str, Any]]]) -> None:
    """Checks that all shards trained a method in the same program.

    Raises:
        InputError: If one has another number of runs on each device, whose results differ by rounding.
    """
    first: dict[str, tuple[Path, int]] = {}
    for folder, settled in programs.items():
        for method, program in settled.items():
            there, number = first.setdefault(method, (folder, program["runs_at_once"]))
            if program["runs_at_once"] != number:
                raise InputError(
                    f"{shown(there)} trained {method} {number} at once on each device, {shown(folder)} "
                    f"{program['runs_at_once']}: their numbers differ by rounding; train one of them again, with the "
                    "--runs-at-once of the other"
                )
