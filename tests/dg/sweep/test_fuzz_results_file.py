"""A results file that was damaged on its way: an error of one line, or what was written, and nothing else."""

import json

import numpy as np
import pytest
from fuzz import cases, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_results import write_results

from disam_jax.dg.errors import InputError
from disam_jax.dg.sweep import results_file, results_folder

CASES = 2500


class Written:
    """A folder with a results file and a report's manifest, the content of the file, and what is right."""

    def __init__(self, out):
        self.out, self.path = out, out / results_file.FILE
        self.header, self.plan = write_results(out, domains=("art", "photo"), at_once=2, leave=1, candidates=2)
        results_folder.write_report(out, {"table.md": b"# Title"}, "last")
        self.content, self.right = self.path.read_bytes(), results_file.load_results(out)
        self.places = {run[:4]: place for place, run in enumerate(self.right.runs)}

    def check(self, results):
        """Whether each run is one that was written, with its numbers, under what was said of all of them."""
        rows = [self.places[run[:4]] for run in results.runs]
        assert len(set(rows)) == len(rows)
        for name in results_file.MEASURED:
            np.testing.assert_array_equal(getattr(results, name), getattr(self.right, name)[rows])
        for run, row in zip(results.runs, rows, strict=True):
            assert run == self.right.runs[row]
        without = lambda value: {key: each for key, each in value.items() if key not in ("command", "methods")}
        assert without(results.header) == without(self.header)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return Written(tmp_path_factory.mktemp("fuzz"))


def check_message(error, path):
    """One line that names the file."""
    text = str(error)
    assert text.isprintable()
    assert len(text) < 1000
    assert str(path) in text


@pytest.mark.slow
@settings(max_examples=cases(CASES))
@given(data=st.data())
def test_a_damaged_results_file_is_refused_or_read_rightly(written, data):
    broken = data.draw(damaged(written.content))
    written.path.write_bytes(broken)
    try:
        written.check(results_file.load_results(written.out))
    except InputError as error:
        check_message(error, written.path)
    refused = False
    try:
        with results_file.open_store(written.out, written.header) as opened:
            there = [run for run in written.plan.runs if opened.has(run)]
            if there:
                written.check(opened.results(there))
    except InputError as error:
        check_message(error, written.path)
        refused = True
    after = written.path.read_bytes()
    if refused:
        assert after == broken
    else:
        # It is whole again, and each of its lines was there before.
        assert after.endswith(b"\n")
        assert {*after.splitlines()} <= {*broken.splitlines(), *written.content.splitlines()}


@pytest.mark.slow
@settings(max_examples=cases(CASES // 5))
@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_names_files_of_ours_only(written, data):
    path = written.out / results_folder.MANIFEST
    content = path.read_bytes()
    path.write_bytes(data.draw(damaged(content)))
    try:
        manifest = results_folder.read_manifest(written.out)
    except InputError as error:
        check_message(error, path)
    else:
        assert {*manifest.files} <= {*results_folder.NAMES}
    finally:
        path.write_bytes(content)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
)
KEYS = st.sampled_from(["chunk", "runs", "program", "runs_at_once", "flops", "header", "schema", "methods"])


@pytest.mark.slow
@settings(max_examples=cases(CASES // 5))
@given(data=st.data())
def test_other_json_in_the_place_of_a_line_is_refused(written, data):
    line = json.dumps(data.draw(ANYTHING | st.dictionaries(KEYS, ANYTHING, max_size=4))).encode()
    lines = written.content.splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    written.path.write_bytes(b"\n".join([*lines[:place], line, *lines[place + 1 :], b""]))
    with pytest.raises(InputError) as error:
        results_file.load_results(written.out)
    check_message(error.value, written.path)
