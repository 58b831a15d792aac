"""Registries: one list of methods, networks and so on, from which everything else that lists them is made."""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from disam_jax.dg.errors import InputError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name: those of the files of a package, then those of other installed packages.

    Nothing has to be listed twice. A file of `package` that defines a mapping called `table` contributes its entries.
    An installed package contributes one through an entry point of `group`, whose name is the entry's name. Files and
    entry points are read at the first use, so importing a registry is free.

    Args:
        kind: Word for an entry in messages, as in "method".
        entry_type: Type of every entry.
        package: Dotted name of the package whose files are read.
        table: Name of the mapping in such a file.
        group: Entry-point group for other packages.
        first: Files whose entries come first, in this order; the others follow by name.
        derive: `(name, entry) -> entries by name`: what is made of an entry and follows it.

    Attributes:
        failures: One line for each entry point that could not be used. The other entries are there.

    Raises:
        InputError: At the first use, if two entries have one name.
        TypeError: At the first use, if an entry of `package` is not an `entry_type`.

    Example:
        >>> from disam_jax.dg.methods import METHODS
        >>> METHODS["ERM"].note
        'empirical risk minimisation'
    """

    def __init__(
        self,
        kind: str,
        entry_type: type[Entry],
        package: str,
        table: str,
        group: str,
        first: tuple[str, ...] = (),
        derive: Callable[[str, Entry], Mapping[str, Entry]] | None = None,
    ):
        self._kind, self._type, self._package, self._table = kind, entry_type, package, table
        self._group, self._first, self._derive = group, first, derive
        self._entries: dict[str, Entry] | None = None
        self._failures: list[str] = []

    def __getitem__(self, name: str) -> Entry:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"Registry of {self._kind}s: {', '.join(self)}"

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each entry point that could not be used."""
        self._read()
        return tuple(self._failures)

    def _read(self) -> dict[str, Entry]:
        if self._entries is None:
            entries: dict[str, Entry] = {}
            sources: dict[str, str] = {}

            def add(name: str, entry: Entry, source: str) -> None:
                if name in entries:
                    raise InputError(
                        f"two {self._kind}s are called {name}: one of {sources[name]}, one of {source}. Rename one."
                    )
                entries[name], sources[name] = entry, source
                for derived, made in self._derive(name, entry).items() if self._derive else ():
                    add(derived, made, f"{source}, made of {name}")

            for module in self._modules():
                table = getattr(importlib.import_module(module), self._table, {})
                # The file that holds the registry may call it by the name of the tables.
                for name, entry in () if table is self else table.items():
                    if not isinstance(entry, self._type):
                        raise TypeError(self._wrong_type(name, module, entry))
                    add(name, entry, module)
            failures = []
            for point in sorted(importlib.metadata.entry_points(group=self._group), key=lambda point: point.name):
                source = point.dist.name if point.dist else point.value
                try:
                    entry = point.load()
                except Exception as error:  # whatever another package's import raises
                    failures.append(
                        f"{self._kind} {point.name} of the package {source} is left out: {point.value} cannot be "
                        f"imported: {type(error).__name__}: {' '.join(str(error).split())}"
                    )
                    continue
                if isinstance(entry, self._type):
                    add(point.name, entry, f"the package {source}")
                else:
                    failures.append(self._wrong_type(point.name, f"the package {source}", entry) + " It is left out.")
            self._entries, self._failures = entries, failures
        return self._entries

    def _modules(self) -> list[str]:
        package = importlib.import_module(self._package)
        found = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
        return [f"{self._package}.{name}" for name in dict.fromkeys((*self._first, *found)) if name in found]

    def _wrong_type(self, name: str, source: str, entry: object) -> str:
        return f"{self._kind} {name} of {source} must be a {self._type.__name__}, got {type(entry).__name__}."
