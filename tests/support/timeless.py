"""What two results files have in common that were written at different times."""

import json

from disam_jax.dg.sweep import results_file


def timeless(out):
    """The lines of a results file without what a clock or a folder's name has to do with."""
    values = [json.loads(line) for line in (out / results_file.FILE).read_text().splitlines()]
    for value in values:
        value.get("header", {}).pop("command", None)
        value.pop("seconds", None)
        assert value.pop(results_file.CHECKSUM)
    return values
