"""Reading a results file back: whole, it gives what was written; anything else is an error that names the line."""

import json
import os

import numpy as np
import pytest
from synthetic_results import make_plan, write_results

from disam_jax.dg.cli import compare
from disam_jax.dg.cli import main as cli
from disam_jax.dg.errors import InputError
from disam_jax.dg.sweep import results_file
from disam_jax.dg.sweep.results_folder import read_manifest

# Line 1 is the header, line 2 the program of ERM, lines 3 and 4 its chunks, 5 to 7 the same of SAM.
CHUNK = 3


@pytest.fixture
def whole(tmp_path):
    """A folder with the results of twelve runs, and what to go on with them."""
    header, plan = write_results(tmp_path / "out")
    return tmp_path / "out", header, plan


def lines_of(out):
    return (out / results_file.FILE).read_bytes().splitlines(keepends=True)


def dumped(value):
    return json.dumps(value).encode() + b"\n"


def changed(line, change):
    """A line that says something else, as an editor would leave it: without a checksum."""
    value = json.loads(line)
    value.pop(results_file.CHECKSUM, None)
    return dumped(change(value) or value)


def in_runs(change):
    """A change of the first run of a chunk."""

    def within(value):
        change(value["runs"][0])

    return within


def in_header(change):
    """A change of a header."""

    def within(value):
        change(value["header"])

    return within


def set_to(key, value):
    return lambda record: record.__setitem__(key, value)


def refused(out, header, number):
    """Whether the file is refused by a report and by a resumed sweep, with one line that names the line."""
    before = (out / results_file.FILE).read_bytes()
    with pytest.raises(InputError) as of_report:
        results_file.load_results(out)
    with pytest.raises(InputError) as of_sweep, results_file.open_store(out, header):
        pass
    for error in (of_report, of_sweep):
        assert str(error.value).startswith(f"{out / results_file.FILE}, line {number}: ")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 700
    assert (out / results_file.FILE).read_bytes() == before
    return str(of_report.value)


NO_RECORD = {
    "a number": b"5\n",
    "an empty object": b"{}\n",
    "null": b"null\n",
    "an empty list": b"[]\n",
    "a text": b'"chunk"\n',
    "an empty line": b"\n",
    "nothing that is JSON": b"chunk\n",
    "NaN": b'{"chunk":["ERM",0],"runs":NaN}\n',
    "deep nesting of lists": b"[" * 10_000 + b"]" * 10_000 + b"\n",
    "deep nesting of objects": b'{"chunk":' * 10_000 + b"1" + b"}" * 10_000 + b"\n",
    "a key twice": b'{"chunk":["ERM",0],"chunk":["ERM",1],"runs":[]}\n',
    "a whole number of many digits": b'{"chunk":["ERM",' + b"9" * 10_000 + b'],"runs":[]}\n',
    "not UTF-8": b'{"chunk":["\xff",0],"runs":[]}\n',
    "a mark of the order of bytes": b"\xef\xbb\xbf" + b'{"chunk":["ERM",0],"runs":[]}\n',
    "another encoding": '{"chunk":["ERM",0],"runs":[]}\n'.encode("utf-16"),
    "a zero byte": b"\0\n",
    "another kind of line": b'{"note":"mine"}\n',
    "no runs": b'{"chunk":["ERM",0],"runs":[]}\n',
    "runs that are no list": b'{"chunk":["ERM",0],"runs":5}\n',
    "runs that are no objects": b'{"chunk":["ERM",0],"runs":[5,null]}\n',
    "a chunk of an unknown method": b'{"chunk":["GSAM",0],"runs":[{}]}\n',
    "a chunk that is no pair": b'{"chunk":"ERM","runs":[{}]}\n',
    "a method that is a list": b'{"chunk":[["ERM"],0],"runs":[{}]}\n',
    "a program of an unknown method": b'{"program":"GSAM","runs_at_once":3,"flops":1.0}\n',
    "a program that is an object": b'{"program":{},"runs_at_once":3,"flops":1.0}\n',
    "a program without a number of runs": b'{"program":"ERM","flops":1.0}\n',
    "a program of no runs": b'{"program":"ERM","runs_at_once":0,"flops":1.0}\n',
    "a program of half a run": b'{"program":"ERM","runs_at_once":0.5,"flops":1.0}\n',
    "a program of true runs": b'{"program":"ERM","runs_at_once":true,"flops":1.0}\n',
    "a program of negative FLOPs": b'{"program":"ERM","runs_at_once":3,"flops":-1.0}\n',
    "a program of more FLOPs than a number can be": b'{"program":"ERM","runs_at_once":3,"flops":1e999}\n',
    "a program and a chunk": b'{"program":"ERM","runs_at_once":3,"flops":1.0,"chunk":["ERM",0]}\n',
}


@pytest.mark.parametrize("place", [1, 4, 7], ids=["after the header", "amid", "at the end"])
@pytest.mark.parametrize("line", NO_RECORD.values(), ids=NO_RECORD)
def test_a_line_that_is_no_record_is_named(whole, line, place):
    out, header, _ = whole
    lines = lines_of(out)
    (out / results_file.FILE).write_bytes(b"".join([*lines[:place], line, *lines[place:]]))
    refused(out, header, place + 1)


CHANGED_RUNS = {
    "a key is missing": lambda record: record.pop("losses"),
    "a key is unknown": set_to("note", "mine"),
    "another method": set_to("method", "SAM"),
    "no method": set_to("method", None),
    "a target that is none": set_to("target", 3),
    "a negative target": set_to("target", -1),
    "a target by name": set_to("target", "art"),
    "a target that is true": set_to("target", True),
    "a seed that is none": set_to("seed", 2),
    "a seed that is no whole number": set_to("seed", 0.0),
    "a candidate that is none": set_to("candidate", 1),
    "other hyperparameters": lambda record: record["hyper"].update(rho=0.25),
    "hyperparameters that are a list": set_to("hyper", []),
    "hyperparameters that are texts": lambda record: record["hyper"].update(learning_rate="0.1"),
    "a measure that is null": set_to("accuracy", None),
    "a measure that is a number": set_to("sharpness", 0.5),
    "a measure of fewer points": lambda record: record["accuracy"].pop(),
    "a measure of fewer domains": lambda record: record["sharpness"].pop(),
    "a measure of more domains": lambda record: record["probe_losses"][0].append(0.5),
    "a measure of another depth": lambda record: record["losses"].__setitem__(0, [0.5, 0.5]),
    "a measure with a text": lambda record: record["sharpness"].__setitem__(0, "0.5"),
    "a measure with true": lambda record: record["sharpness"].__setitem__(0, True),
    "a measure with a number beyond all": lambda record: record["sharpness"].__setitem__(0, 10**400),
    "an accuracy above one": lambda record: record["accuracy"][0][0].__setitem__(0, 1.5),
    "new classes where there are none": set_to("new_accuracy", [[0.5] * 3] * 3),
}


@pytest.mark.parametrize("change", CHANGED_RUNS.values(), ids=CHANGED_RUNS)
def test_a_run_that_does_not_belong_to_the_header_is_named(whole, change):
    out, header, _ = whole
    lines = lines_of(out)
    lines[CHUNK] = changed(lines[CHUNK], in_runs(change))
    (out / results_file.FILE).write_bytes(b"".join(lines))
    refused(out, header, CHUNK + 1)


CHANGED_HEADERS = {
    "no methods": lambda header: header.pop("methods"),
    "an unknown key": set_to("note", "mine"),
    "methods that are a list": set_to("methods", ["ERM", "SAM"]),
    "candidates of other methods": lambda header: header["candidates"].pop("SAM"),
    "candidates that are no numbers": lambda header: header["candidates"]["ERM"][0].update(learning_rate=None),
    "a target that is not a domain": set_to("targets", ["moon"]),
    "a seed twice": set_to("seeds", [0, 0]),
    "seeds that are none": set_to("seeds", []),
    "steps that descend": set_to("steps", [0, 4, 2]),
    "steps that are a number": set_to("steps", 4),
    "a wrong number of runs": set_to("planned", 13),
    "domains without a number": lambda header: header["data"]["domains"].update(art="4"),
    "no data": set_to("data", {}),
    "a name that is no Unicode": lambda header: header["data"].update(name="\ud800"),
    "a command that is a list": set_to("command", ["disam-jax"]),
    "a setting with a list": lambda header: header["setting"].update(steps=[4]),
}


@pytest.mark.parametrize("change", CHANGED_HEADERS.values(), ids=CHANGED_HEADERS)
def test_a_header_that_makes_no_sense_is_named(whole, change):
    out, header, _ = whole
    lines = lines_of(out)
    lines[0] = changed(lines[0], in_header(change))
    (out / results_file.FILE).write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=rf"{results_file.FILE}, line 1: "):
        results_file.load_results(out)
    with pytest.raises(InputError, match=results_file.FILE), results_file.open_store(out, header):
        pass
    assert lines_of(out) == lines


def test_a_number_that_was_changed_since_it_was_written_is_found(whole):
    out, header, _ = whole
    lines = lines_of(out)
    place = lines[CHUNK].index(b"0.") + 2
    digit = lines[CHUNK][place : place + 1]
    lines[CHUNK] = lines[CHUNK][:place] + (b"1" if digit != b"1" else b"2") + lines[CHUNK][place + 1 :]
    (out / results_file.FILE).write_bytes(b"".join(lines))
    assert "checksum" in refused(out, header, CHUNK + 1)


def test_spaces_and_ends_of_lines_of_another_system_change_nothing(whole):
    out, header, _ = whole
    before = results_file.load_results(out)
    lines = [dumped(json.loads(line)).replace(b"\n", b"\r\n") for line in lines_of(out)]
    (out / results_file.FILE).write_bytes(b"".join(lines))
    np.testing.assert_array_equal(results_file.load_results(out).losses, before.losses)
    with results_file.open_store(out, header) as again:
        assert len(again.records) == 12


# What a kill leaves.


@pytest.mark.parametrize("cut", [1, 5, 20, 200, 700])
def test_a_line_that_was_not_finished_is_cut_off_and_the_others_are_kept(whole, cut):
    out, header, plan = whole
    *lines, last = lines_of(out)
    (out / results_file.FILE).write_bytes(b"".join([*lines, last[:cut]]))
    assert len(results_file.load_results(out).runs) == 9
    with results_file.open_store(out, header) as again:
        assert len(again.records) == 9
        assert [again.has(run) for run in plan.runs_of("SAM")] == [True] * 3 + [False] * 3
    assert (out / results_file.FILE).read_bytes() == b"".join(lines)


def test_a_last_line_that_lost_only_its_end_is_kept(whole):
    out, header, _ = whole
    content = (out / results_file.FILE).read_bytes()
    (out / results_file.FILE).write_bytes(content[:-1])
    assert len(results_file.load_results(out).runs) == 12
    with results_file.open_store(out, header) as again:
        assert len(again.records) == 12
    assert (out / results_file.FILE).read_bytes() == content


@pytest.mark.parametrize("end", [b"my notes", b"\0" * 100, b"[1, 2", b'{"note"'])
def test_an_end_that_we_did_not_write_is_no_line_that_was_not_finished(whole, end):
    out, header, _ = whole
    with (out / results_file.FILE).open("ab") as file:
        file.write(end)
    refused(out, header, 8)


def test_a_header_that_was_not_finished_begins_anew(whole):
    out, header, _ = whole
    content = lines_of(out)[0]
    (out / results_file.FILE).write_bytes(content[:50])
    with results_file.open_store(out, header) as again:
        assert not again.records
    assert (out / results_file.FILE).read_bytes() == content


# Files put together.


def joined(tmp_path, **options):
    """The lines of another sweep."""
    write_results(tmp_path / "other", **options)
    return lines_of(tmp_path / "other")


def test_the_same_lines_twice_are_kept_once(whole):
    out, header, _ = whole
    before = results_file.load_results(out)
    lines = lines_of(out)
    (out / results_file.FILE).write_bytes(b"".join([*lines, *lines]))
    again = results_file.load_results(out)
    assert again.runs == before.runs
    np.testing.assert_array_equal(again.losses, before.losses)
    with results_file.open_store(out, header) as opened:
        assert len(opened.records) == 12


def test_two_halves_of_a_sweep_are_put_together(whole, tmp_path):
    out, header, _ = whole
    before, lines = results_file.load_results(out), lines_of(out)
    (out / results_file.FILE).write_bytes(b"".join([*lines[:4], lines[0], *lines[4:]]))
    assert results_file.load_results(out).runs == before.runs
    with results_file.open_store(out, header) as opened:
        assert len(opened.records) == 12


@pytest.mark.parametrize(
    "options",
    [{"methods": ("erm", "disam")}, {"domains": ("art", "photo", "paint")}, {"steps": 6}],
    ids=["methods", "domains", "steps"],
)
def test_the_file_of_another_sweep_behind_is_named(whole, tmp_path, options):
    out, header, _ = whole
    (out / results_file.FILE).write_bytes(b"".join([*lines_of(out), *joined(tmp_path, **options)]))
    assert "of another sweep" in refused(out, header, 8)


@pytest.mark.parametrize(
    ("options", "line"),
    [({"seeds": 3}, 9), ({"methods": ("erm", "disam")}, 11), ({"domains": tuple("abcd")}, 9), ({"steps": 1}, 9)],
    ids=["seeds", "methods", "domains", "steps"],
)
def test_rows_of_another_sweep_behind_are_named(whole, tmp_path, options, line):
    """Without its header; what comes first that cannot be a part of this one is named."""
    out, header, _ = whole
    (out / results_file.FILE).write_bytes(b"".join([*lines_of(out), *joined(tmp_path, **options)[1:]]))
    refused(out, header, line)


def test_the_same_runs_with_other_numbers_name_both_lines(whole, tmp_path):
    out, header, _ = whole
    other = joined(tmp_path, seed=1)
    (out / results_file.FILE).write_bytes(b"".join([*lines_of(out), other[2]]))
    assert "contradicts line 3: other numbers for ERM" in refused(out, header, 8)


def test_another_program_names_both_lines(whole, tmp_path):
    out, header, _ = whole
    other = joined(tmp_path, at_once=2)
    (out / results_file.FILE).write_bytes(b"".join([*lines_of(out), other[1]]))
    assert "contradicts line 2" in refused(out, header, 8)


def test_a_run_twice_in_a_chunk_is_named(whole):
    out, header, _ = whole
    lines = lines_of(out)
    lines[CHUNK] = changed(lines[CHUNK], lambda value: value["runs"].__setitem__(1, value["runs"][0]))
    (out / results_file.FILE).write_bytes(b"".join(lines))
    assert "twice" in refused(out, header, CHUNK + 1)


def test_of_a_chunk_that_lost_a_run_the_others_are_kept(whole):
    out, header, plan = whole
    lines = lines_of(out)
    lines[CHUNK] = changed(lines[CHUNK], lambda value: {**value, "runs": value["runs"][1:]})
    (out / results_file.FILE).write_bytes(b"".join(lines))
    with results_file.open_store(out, header) as again:
        assert [again.has(run) for run in plan.runs_of("ERM")] == [True] * 3 + [False] + [True] * 2


def test_a_chunk_without_its_program_is_named(whole):
    out, header, _ = whole
    lines = lines_of(out)
    (out / results_file.FILE).write_bytes(b"".join([lines[0], *lines[2:]]))
    assert "before the line of its program" in refused(out, header, 2)


def test_a_report_of_a_part_says_what_is_left_out(tmp_path):
    write_results(tmp_path, leave=1)
    part = results_file.complete_part(results_file.load_results(tmp_path))
    assert part.methods == ("ERM",)
    assert part.header["notes"] == ["Left out, for runs are missing: SAM (3 of 6 runs)."]


# Files of others in the place of ours.


@pytest.mark.parametrize(
    "content",
    [
        b"mine",
        b"mine\n",
        b"5",
        b"5\n",
        b"{",
        b"{}",
        b"null",
        b'{"header":{"schema":2,"mine',
        b"\n",
        b"\0" * 50,
        b"\xff\xfe",
    ],
)
def test_a_foreign_file_is_left_alone(tmp_path, content):
    header, _ = make_plan()
    (tmp_path / results_file.FILE).write_bytes(content)
    for replace in (False, True):
        with pytest.raises(InputError, match=rf"{results_file.FILE} is not a results file"):  # noqa: SIM117
            with results_file.open_store(tmp_path, header, replace):
                pass
    assert (tmp_path / results_file.FILE).read_bytes() == content
    assert os.listdir(tmp_path) == [results_file.FILE]


def pipe(path):
    os.mkfifo(path)


def link(path):
    path.with_name("elsewhere").write_bytes(b"mine\n")
    path.symlink_to("elsewhere")


def link_to_nothing(path):
    path.symlink_to("nothing")


@pytest.mark.parametrize("make", [pipe, link, link_to_nothing, lambda path: path.mkdir()])
@pytest.mark.parametrize("replace", [False, True])
def test_what_is_no_file_is_named_and_left_alone(tmp_path, make, replace):
    header, _ = make_plan()
    make(tmp_path / results_file.FILE)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match=results_file.FILE), results_file.open_store(tmp_path, header, replace):
        pass
    with pytest.raises(InputError, match=results_file.FILE):
        results_file.load_results(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("command", [["compare"], ["compare", "--overwrite"], ["sweep"]])
def test_a_foreign_file_is_refused_before_any_work(tmp_path, capsys, command, monkeypatch):
    monkeypatch.setattr(compare, "read_data", pytest.fail)
    (tmp_path / results_file.FILE).write_text("mine")
    assert cli.main([*command, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / results_file.FILE).read_text() == "mine"
    assert os.listdir(tmp_path) == [results_file.FILE]


def test_a_damaged_file_is_one_line_of_a_report(tmp_path, capsys):
    write_results(tmp_path)
    with (tmp_path / results_file.FILE).open("ab") as file:
        file.write(b"5\n")
    assert cli.main(["report", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"disam-jax: error: {tmp_path / results_file.FILE}, line 8: ")
    assert printed.err.count("\n") == 1


# Results of another setting.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 1}, "--seeds lacks 1 of the seeds that are there: write --seeds 0..1"),
        ({"methods": ("erm", "disam")}, "--method lacks 'SAM', which is there: write it too"),
        ({"steps": 6}, "--steps: setting.steps is 4 there and 6 here"),
        ({"targets": (0, 2)}, "--target lacks 'photo', which is there: write it too"),
        ({"rho": 0.25}, "--rho: setting.rho is 0.1 there and 0.25 here"),
        ({"domains": ("art", "photo", "paint")}, "--data and its options: data.domains.sketch is 4 there and null"),
    ],
    ids=["seeds", "methods", "steps", "targets", "rho", "data"],
)
def test_results_of_another_setting_are_kept_unless_they_may_be_moved_aside(whole, options, said):
    out, _, _ = whole
    before = (out / results_file.FILE).read_bytes()
    header, _ = make_plan(**options)
    with pytest.raises(InputError) as error, results_file.open_store(out, header):
        pass
    assert said in str(error.value)
    assert str(error.value).endswith("give another --out, or --overwrite to move them aside")
    assert (out / results_file.FILE).read_bytes() == before
    with results_file.open_store(out, header, overwrite=True) as opened:
        assert not opened.records
        assert opened.aside == out / "earlier-1"
    assert (out / "earlier-1" / results_file.FILE).read_bytes() == before
    assert len(results_file.load_results(out / "earlier-1").runs) == 12


@pytest.mark.parametrize("kept", [1, 2])
def test_a_command_that_ended_before_its_first_chunk_is_in_nobodys_way(whole, kept):
    out, _, _ = whole
    (out / results_file.FILE).write_bytes(b"".join([*lines_of(out)[:kept], b'{"chunk":["ERM"']))
    with results_file.open_store(out, make_plan(seeds=3)[0], select="last") as opened:
        assert not opened.records
        assert opened.aside is None
    assert read_manifest(out).select == "last"
    assert sorted(os.listdir(out)) == ["report.json", results_file.FILE]


def test_a_header_without_runs_that_another_version_wrote_is_left_alone(tmp_path):
    content = '{"header":{"schema":2,"data":{"name":"others"}}}\n'
    (tmp_path / results_file.FILE).write_text(content)
    with (
        pytest.raises(InputError, match="holds results of something else"),
        results_file.open_store(tmp_path, make_plan()[0]),
    ):
        pass
    assert (tmp_path / results_file.FILE).read_text() == content


def test_each_set_of_earlier_results_has_a_folder(tmp_path):
    write_results(tmp_path)
    for steps in (6, 8):
        header, _ = make_plan(steps=steps)
        with results_file.open_store(tmp_path, header, overwrite=True) as opened:
            assert opened.aside == tmp_path / f"earlier-{steps // 2 - 2}"
        write_results(tmp_path, steps=steps)
    assert sorted(os.listdir(tmp_path)) == ["earlier-1", "earlier-2", "report.json", results_file.FILE]


def test_the_same_setting_goes_on_and_moves_nothing(whole):
    out, header, _ = whole
    with results_file.open_store(out, {**header, "command": "typed otherwise"}, overwrite=True) as again:
        assert len(again.records) == 12
        assert again.aside is None
    assert sorted(os.listdir(out)) == ["report.json", results_file.FILE]


def test_damaged_results_of_another_setting_can_be_moved_aside(whole):
    out, _, _ = whole
    with (out / results_file.FILE).open("ab") as file:
        file.write(b"5\n")
    with results_file.open_store(out, make_plan(steps=6)[0], overwrite=True) as opened:
        assert opened.aside == out / "earlier-1"
