"""What a line of a results file may say: every key, type, shape and range, checked against the header."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from disam_jax.dg.reading import brief

# The fields of a Run as files name them, which have called the hyperparameters "hyper" since the first schema.
RUN = ("method", "target", "seed", "candidate", "hyper")
MEASURED = ("accuracy", "losses", "probe_losses", "perturbed_losses", "sharpness")
# Only if some classes are not trained on.
OPTIONAL = ("new_accuracy",)
CHECKSUM = "crc32"
# In the place of the hyperparameters of a candidate that is drawn anew for each seed: its number.
DRAW = "draw"
LARGEST = float(np.finfo(np.float64).max)
WHOLE_NUMBERS = 2**63

# (method, target, seed, candidate)
Name = tuple[str, int, int, int]


class WrongError(Exception):
    """What is wrong with a line, in words that follow its number."""


def wrong(what: str) -> NoReturn:
    """Says what is wrong with a line.

    Raises:
        WrongError: Always.
    """
    raise WrongError(what)


def check_keys(value: Any, required: Sequence[str], optional: Sequence[str], where: str) -> Mapping[str, Any]:
    """Checks that a value is an object with all keys of one kind and none but those of both.

    Raises:
        WrongError: If it is not.
    """
    if not isinstance(value, dict):
        wrong(f"{where} must be an object {{...}}, got {brief(value, 40)}")
    for key in required:
        if key not in value:
            wrong(f"{where} has no {key!r}")
    for key in value:
        if key not in required and key not in optional:
            wrong(f"{where} has {brief(key, 40)}, which is unknown")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        wrong(f"{where} must be a text, got {brief(value, 40)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        wrong(f"{where} is not Unicode text: {brief(value, 40)}")
    return value


def _whole(value: Any, where: str, least: int = 0, below: int = WHOLE_NUMBERS) -> int:
    if type(value) is not int or not least <= value < below:
        most = "" if below == WHOLE_NUMBERS else f" and below {below}"
        wrong(f"{where} must be a whole number of at least {least}{most}, got {brief(value, 40)}")
    return value


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
        wrong(f"{where} must be a finite number, got {brief(value, 40)}")
    return value


def _list(value: Any, where: str, each: Callable[[Any, str], Any], least: int = 1) -> list[Any]:
    if not isinstance(value, list) or len(value) < least:
        wrong(f"{where} must be a list of {least} or more, got {brief(value, 40)}")
    for entry in value:
        each(entry, f"an entry of {where}")
    return value


def _distinct(value: Any, where: str, each: Callable[[Any, str], Any], least: int = 1) -> list[Any]:
    entries = _list(value, where, each, least)
    if len(set(entries)) < len(entries):
        wrong(f"{where} has an entry twice")
    return entries


def _named(value: Any, where: str, each: Callable[[Any, str], Any], least: int = 1) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(value) < least:
        wrong(f"{where} must be an object {{...}} of {least} or more, got {brief(value, 40)}")
    for key, entry in value.items():
        each(entry, f"{where} of {brief(_text(key, where), 40)}")
    return value


def _numbers(value: Any, shape: Sequence[int], where: str, most: float = LARGEST) -> None:
    """Checks nested lists of numbers, or None for what is not finite."""
    if not isinstance(value, list) or len(value) != shape[0]:
        wrong(f"{where} must have the shape {list(shape)}, got {brief(value, 40)}")
    if len(shape) > 1:
        for entry in value:
            _numbers(entry, shape[1:], where, most)
        return
    for entry in value:
        if entry is not None and (type(entry) not in (int, float) or not -LARGEST <= entry <= most):
            kind = "a finite number" if most == LARGEST else f"a number up to {most:g}"
            wrong(f"{where} must have {kind} or null everywhere, got {brief(entry, 40)}")


def _setting(value: Any, where: str) -> None:
    if isinstance(value, dict):
        _named(value, where, _setting)
    elif isinstance(value, str):
        _text(value, where)
    elif value is not None and not isinstance(value, bool):
        _number(value, where)


def check_header(header: Any) -> Mapping[str, Any]:
    """Checks what a results file says about all of its runs.

    Raises:
        WrongError: If it cannot be what `sweep.make_header` made.
    """
    required = ("schema", "version", "command", "data", "setting", "methods", "candidates", "targets", "seeds", "steps")
    check_keys(header, (*required, "notes", "planned"), ("metrics", "shard"), "the header")
    if "shard" in header:
        _list(header["shard"], "shard", _whole, 2)
        if len(header["shard"]) != 2 or not header["shard"][0] < header["shard"][1]:
            wrong(f"shard must be [I, N] with I below N, got {brief(header['shard'], 40)}")
    if "metrics" in header:
        _distinct(header["metrics"], "metrics", _text)
    _named(header["version"], "version", _text)
    _text(header["command"], "command")
    fields = ("name", "domains", "classes", "shape", "streamed", "fingerprint")
    data = check_keys(header["data"], fields, ("new_classes", "new_fingerprint"), "data")
    _text(data["name"], "data.name")
    domains = _named(data["domains"], "data.domains", _whole)
    _list(data["classes"], "data.classes", _text)
    _list(data["shape"], "data.shape", _whole)
    _text(data["fingerprint"], "data.fingerprint")
    if not isinstance(data["streamed"], bool):
        wrong(f"data.streamed must be true or false, got {brief(data['streamed'], 40)}")
    if ("new_classes" in data) != ("new_fingerprint" in data):
        wrong("data has only one of new_classes and new_fingerprint")
    if "new_classes" in data:
        _list(data["new_classes"], "data.new_classes", _text)
        _text(data["new_fingerprint"], "data.new_fingerprint")
    _named(header["setting"], "setting", _setting)
    methods = _named(header["methods"], "methods", _check_method)
    hypers = lambda value, where: _list(value, where, lambda each, of: _named(each, of, _number))
    candidates = _named(header["candidates"], "candidates", hypers)
    if list(candidates) != list(methods):
        wrong("candidates are of other methods than methods")
    for name, facts in methods.items():
        if facts["candidates"] != len(candidates[name]):
            wrong(f"methods says that {name} has {facts['candidates']} candidates, candidates has another number")
    for target in _distinct(header["targets"], "targets", _text):
        if target not in domains:
            wrong(f"targets has {brief(target, 40)}, which is none of the domains")
    _distinct(header["seeds"], "seeds", _whole)
    steps = _distinct(header["steps"], "steps", _whole, 2)
    if steps != sorted(steps) or steps[0] != 0:
        wrong("steps must ascend from 0")
    _list(header["notes"], "notes", _text, 0)
    runs = sum(map(len, candidates.values())) * len(header["targets"]) * len(header["seeds"])
    if type(header["planned"]) is not int or header["planned"] != runs:
        wrong(f"planned must be {runs}, the number of all runs, got {brief(header['planned'], 40)}")
    return header


def _check_method(value: Any, where: str) -> None:
    facts = check_keys(value, ("base", "control", "candidates"), (), where)
    if facts["base"] is not None:
        _text(facts["base"], f"base in {where}")
    if not isinstance(facts["control"], bool):
        wrong(f"control in {where} must be true or false, got {brief(facts['control'], 40)}")
    _whole(facts["candidates"], f"candidates in {where}", 1)


def check_program(line: Mapping[str, Any], header: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Checks a line that says what was settled for a method's program.

    Returns:
        Name of the method, and what was settled.

    Raises:
        WrongError: If something in it cannot be.
    """
    check_keys(line, ("program", "runs_at_once", "flops"), (CHECKSUM,), "the line")
    method = _known_method(line["program"], header)
    _whole(line["runs_at_once"], "runs_at_once", 1)
    if line["flops"] is not None and _number(line["flops"], "flops") <= 0:
        wrong(f"flops must be positive, got {brief(line['flops'], 40)}")
    return method, {"runs_at_once": line["runs_at_once"], "flops": line["flops"]}


def _known_method(value: Any, header: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or value not in header["methods"]:
        wrong(f"{brief(value, 40)} is none of the methods {', '.join(header['methods'])}")
    return value


def check_chunk(line: Mapping[str, Any], header: Mapping[str, Any]) -> tuple[str, int, list[dict[str, Any]]]:
    """Checks a line that holds the runs of a chunk.

    Returns:
        Name of the method, number of the chunk among the method's, and what was measured of each run.

    Raises:
        WrongError: If something in it cannot be, or is not of the header's runs.
    """
    check_keys(line, ("chunk", "runs"), ("seconds", CHECKSUM), "the line")
    if "seconds" in line and _number(line["seconds"], "seconds") < 0:
        wrong(f"seconds must not be negative, got {brief(line['seconds'], 40)}")
    if not isinstance(line["chunk"], list) or len(line["chunk"]) != 2:
        wrong(f"chunk must be [method, number], got {brief(line['chunk'], 40)}")
    method = _known_method(line["chunk"][0], header)
    number = _whole(line["chunk"][1], "the number of the chunk")
    runs = _list(line["runs"], "runs", lambda record, where: _check_record(record, where, method, header))
    if len({name_of(record) for record in runs}) < len(runs):
        wrong("a run appears twice")
    return method, number, runs


def _check_record(record: Any, where: str, method: str, header: Mapping[str, Any]) -> None:
    """Checks one run against what the header says of all of them."""
    optional = OPTIONAL if "new_classes" in header["data"] else ()
    metrics = header.get("metrics", ())
    check_keys(record, (*RUN, *MEASURED, *optional, *(["metrics"] if metrics else [])), (), where)
    if record["method"] != method:
        wrong(f"{where} is of {brief(record['method'], 40)} in a chunk of {method}")
    names = list(header["data"]["domains"])
    target = _whole(record["target"], "target", 0, len(names))
    if names[target] not in header["targets"]:
        wrong(f"target {target}, {brief(names[target], 40)}, is none of the targets")
    if _whole(record["seed"], "seed") not in header["seeds"]:
        wrong(f"seed {record['seed']} is none of the seeds")
    candidates = header["candidates"][method]
    hparams = candidates[_whole(record["candidate"], "candidate", 0, len(candidates))]
    hyper = _named(record["hyper"], "hyper", _number, 0)
    if DRAW in hparams and set(hyper) != set(candidates[0]):
        wrong(f"hyper has other names than candidate 0 of {method}")
    if DRAW not in hparams and hyper != hparams:
        wrong(f"hyper is not that of candidate {record['candidate']} of {method}")
    points, number = len(header["steps"]), len(names)
    shapes = {
        "accuracy": (points, 2, number),
        "losses": (points, 2, number),
        "probe_losses": (points, number),
        "perturbed_losses": (points, number),
        "sharpness": (number,),
        "new_accuracy": (points, number),
    }
    if metrics:
        for name, values in check_keys(record["metrics"], metrics, (), f"metrics of {where}").items():
            _numbers(values, shapes["losses"], name)
    for name in (*MEASURED, *optional):
        _numbers(record[name], shapes[name], name, 1.0 if name.endswith("accuracy") else LARGEST)


def name_of(record: Mapping[str, Any]) -> Name:
    """What a run is found by."""
    return record["method"], record["target"], record["seed"], record["candidate"]
