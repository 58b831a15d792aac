"""Standard output that a closed pipe or a full disk cannot bring down with a traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from disam_jax.dg.errors import InputError


class ClosedError(Exception):
    """Nobody reads standard output any more."""


class _Output:
    """Standard output whose failure to be written is an error that the user can mend."""

    def __init__(self, file: Any):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with _output_errors():
            return self._file.write(text)

    def flush(self) -> None:
        with _output_errors():
            self._file.flush()


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedError from error
    except OSError as error:
        raise InputError(f"cannot write to standard output: {error.strerror}") from error


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Standard output as `_Output`, written to its end; after an error, what is left goes nowhere."""
    before = sys.stdout
    if before is None:
        yield
        return
    sys.stdout = cast(TextIO, _Output(before))
    try:
        try:
            yield
        except SystemExit:
            # After a help text.
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except (ClosedError, InputError):
        _discard(before)
        raise
    finally:
        sys.stdout = before


def _discard(file: TextIO) -> None:
    """Lets Python end without a second error where what a file still holds cannot be written."""
    try:
        file.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
