"""The mutants that mean the same as the original, or differ in what no one is promised; each with the reason."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

PATH = Path(__file__).with_name("equivalent.toml")
Key = tuple[str, str, str, str]


def read(path: Path = PATH) -> Mapping[Key, str]:
    """Reasons by the keys of the mutants: module, function, the changed lines before and after."""
    found: dict[Key, str] = {}
    for entry in tomllib.loads(path.read_text()).get("equivalent", []):
        key = entry["module"], entry["function"], entry["before"], entry["after"]
        if not entry["reason"].strip():
            raise ValueError(f"{path.name}: {key} has no reason.")
        if key in found:
            raise ValueError(f"{path.name}: {key} stands there twice.")
        found[key] = entry["reason"]
    return found
