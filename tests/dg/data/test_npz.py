"""npz files that are wrong in any way are refused in one line that names the file and the array, at once."""

import io
import os
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from odd_files import ODD, without_rights
from support import slow

from disam_jax.dg.data.arrays import load_arrays
from disam_jax.dg.data.npz import FREE_BYTES, open_npz, read_header
from disam_jax.dg.errors import InputError

N = 12
CONTENT = {"x": np.ones((N, 3), np.float32), "y": np.tile([0, 1, 2], 4), "domain": np.repeat([0, 1], 6)}
PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (12, 3), }"


def npy(array):
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def with_header(header, data=bytes(144), version=1):
    text = header.encode("latin-1") if isinstance(header, str) else header
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def write(path, compression=zipfile.ZIP_STORED, **members):
    """An npz file of arrays, or of bytes in the place of an npy file."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (CONTENT | members).items():
            archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    return path


def refused(path, *names):
    """The message of the error, which must come at once, in one line, without memory for what is only declared."""
    start = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            load_arrays(Path(path))
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    # Milliseconds, where nothing else runs.
    assert time.monotonic() - start < 10
    text = str(caught.value)
    assert text.isprintable()
    assert [str(name) for name in names if str(name) not in text] == []
    return text


def header(**changes):
    fields = {"descr": "'<f4'", "fortran_order": "False", "shape": "(12, 3)"} | changes
    return with_header("{" + ", ".join(f"'{name}': {value}" for name, value in fields.items()) + ", }")


HEADERS = {
    "absurd": header(shape="(12, 10000000000000)"),
    "overflowing": header(shape="(12, 9223372036854775807, 9223372036854775807)"),
    "overflowing to the right size": header(shape="(12, 3, 18446744073709551617)"),
    "many digits": header(shape=f"(12, {'9' * 5000})"),
    "many dimensions": header(shape=f"(12, 3, {'1, ' * 2000})"),
    "more than numpy's dimensions": header(shape=f"(12, 3, {'1, ' * 70})"),
    "negative": header(shape="(12, -3)"),
    "negative twice": header(shape="(-12, -3)"),
    "one row less": header(shape="(11, 3)"),
    "one row more": header(shape="(13, 3)"),
    "floats": header(shape="(12.0, 3)"),
    "bools": header(shape="(12, True)"),
    "no tuple": header(shape="[12, 3]"),
    "a number": header(shape="36"),
    "no shape": with_header("{'descr': '<f4', 'fortran_order': False, }"),
    "shape twice": with_header("{'descr': '<f4', 'shape': (12, 3), 'fortran_order': False, 'shape': (12, 4), }"),
    "descr twice": with_header("{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (12, 3), }"),
    "more fields": header(more="1"),
    "order a number": header(fortran_order="0"),
    "order a string": header(fortran_order="'False'"),
    "structured": header(descr="[('a', '<f4')]"),
    "structured in a string": header(descr="'f4,f4'"),
    "an array of arrays": header(descr="'(3,)f4'"),
    "objects": header(descr="'|O'"),
    "objects inside": header(descr="[('a', '|O')]"),
    "no type": header(descr="'<f3'"),
    "void": header(descr="'|V0'"),
    "strings of no length": header(descr="'<U0'"),
    "strings of absurd length": header(descr="'<U99999999999999999999'"),
    "type of absurd length": header(descr="'<f" + "9" * 5000 + "'"),
    "a type that is none": header(descr="'float'"),
    "a type that is a number": header(descr="5"),
    "unbalanced": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (12, 3"),
    "unbalanced quotes": with_header("{'descr': '<f4, 'fortran_order': False, 'shape': (12, 3), }"),
    "nested": with_header("{'descr': " + "(" * 5000),
    "signs": with_header("{'descr': " + "-" * 9000 + "1"),
    "code": with_header("__import__('os').abort()"),
    "spaces": with_header(" " * 10_000),
    "commas": with_header("{'shape': (" + "1, " * 3000),
    "no UTF-8": with_header(b"{'descr': '\xff\xfe'}"),
    "UTF-8": with_header("{'é': 1}".encode(), version=3),
    "empty": with_header(""),
    "too long": with_header(PLAIN + " " * 20_000),
    "too long and cut": b"\x93NUMPY\x03\x00\xff\xff\xff\xff" + PLAIN.encode(),
    "unknown version": b"\x93NUMPY\x09\x00" + header()[8:],
    "no npy": b"hello, this is text",
    "a zip in the zip": b"PK\x03\x04" + bytes(200),
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "nothing": b"",
    "magic only": b"\x93NUMPY",
    "cut in the header": header()[:40],
    "cut in the data": header()[:-1],
    "longer": header() + b"\0",
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", ["x", "validation", "more"])
@pytest.mark.parametrize("content", HEADERS)
def test_headers_that_cannot_be(tmp_path, content, name, compression):
    refused(write(tmp_path / "toy.npz", compression, **{name: HEADERS[content]}), tmp_path / "toy.npz", name)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "{'descr':'<f4','fortran_order':False,'shape':(12,3)}\n",
        '{"shape": (12L, 3L), "fortran_order": False, "descr": "<f4"}',
        "{ 'fortran_order' : False , 'descr' : '<f4' , 'shape' : ( 12 , 3 , ) , }",
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_as_other_programs_write_them(text, version):
    found = read_header(io.BytesIO(with_header(text, version=version)))
    assert (found.dtype, found.shape, found.fortran) == (np.float32, (12, 3), False)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8", "<i1", ">i2", "<u8", "?", "<U3", ">U3", "<c8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (2, 3, 1, 2), (0, 3)])
def test_arrays_come_as_numpy_reads_them(tmp_path, dtype, order, shape):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, shape), order=order).astype(dtype, order=order)
    np.savez_compressed(tmp_path / "toy.npz", a=array)
    with open_npz(tmp_path / "toy.npz") as npz:
        found = npz.read("a")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_data_of_other_layouts_is_the_same(tmp_path, order, byteorder):
    x = np.random.default_rng(0).normal(size=(N, 2, 3)).astype(np.float32)
    y, domain = np.tile(["cat", "dog", "é"], 4), CONTENT["domain"]
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    np.savez(paths[0], x=x, y=y, domain=domain)
    other = {"x": x, "y": y, "domain": domain}
    np.savez(
        paths[1], **{k: np.asarray(v.astype(v.dtype.newbyteorder(byteorder)), order=order) for k, v in other.items()}
    )
    one, two = map(load_arrays, paths)
    np.testing.assert_array_equal(two.inputs, x)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.class_names == two.class_names == ("cat", "dog", "é")
    assert two.inputs.dtype == np.float32
    assert two.labels.dtype.isnative


# Archives.


def changed(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(bytes(content))
    return path


def set_in_entries(content, offset, value, of=b"PK\x01\x02", local=None):
    """Sets bytes in every entry of the directory, and in the headers before the members where they are too."""
    for start, place in ((of, offset), (b"PK\x03\x04", local)):
        at = content.find(start)
        while at >= 0 and place is not None:
            content[at + place : at + place + len(value)] = value
            at = content.find(start, at + 1)


ARCHIVES = {
    "encrypted": lambda content: set_in_entries(content, 8, b"\x01\x00", local=6),
    "strongly encrypted": lambda content: set_in_entries(content, 8, b"\x41\x00", local=6),
    "patched": lambda content: set_in_entries(content, 8, b"\x20\x00", local=6),
    "unknown compression": lambda content: set_in_entries(content, 10, b"\x63\x00", local=8),
    "lzma": lambda content: set_in_entries(content, 10, b"\x0e\x00", local=8),
    "bzip2": lambda content: set_in_entries(content, 10, b"\x0c\x00", local=8),
    "no deflate": lambda content: set_in_entries(content, 10, b"\x08\x00", local=8),
    "unknown version": lambda content: set_in_entries(content, 6, b"\xff\x00", local=4),
    "wrong checksum": lambda content: set_in_entries(content, 16, b"\x01\x02\x03\x04"),
    "compressed size absurd": lambda content: set_in_entries(content, 20, b"\xfe\xff\xff\xff"),
    "size absurd": lambda content: set_in_entries(content, 24, b"\xfe\xff\xff\xff"),
    "both absurd": lambda content: set_in_entries(content, 20, b"\xfe\xff\xff\xff" * 2),
    "size one less": lambda content: set_in_entries(content, 24, b"\x0f\x01\x00\x00"),
    "offset absurd": lambda content: set_in_entries(content, 42, b"\xfe\xff\xff\xff"),
    "names that are not UTF-8": lambda content: set_in_entries(content, 46, b"\xff", local=30),
    "names in the directory only": lambda content: set_in_entries(content, 46, b"z"),
    "directory cut": lambda content: content.__delitem__(slice(-30, None)),
    "first half": lambda content: content.__delitem__(slice(len(content) // 2, None)),
    "second half": lambda content: content.__delitem__(slice(0, len(content) // 2)),
    "zeros in the middle": lambda content: content.__setitem__(slice(50, 250), bytes(200)),
    "directory far away": lambda content: content.__setitem__(slice(-6, -2), b"\xff\xff\xff\x7f"),
    "directory of absurd size": lambda content: content.__setitem__(slice(-10, -6), b"\xff\xff\xff\x7f"),
}


@pytest.mark.parametrize("change", ARCHIVES)
def test_archives_that_cannot_be(tmp_path, change):
    path = changed(write(tmp_path / "toy.npz"), ARCHIVES[change])
    refused(path, path)


def test_all_members_at_one_place_are_refused(tmp_path):
    path = changed(write(tmp_path / "toy.npz"), lambda content: set_in_entries(content, 42, bytes(4)))
    refused(path, path)


def test_an_array_that_is_there_twice(tmp_path):
    path = write(tmp_path / "toy.npz")
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", npy(CONTENT["x"]))
    refused(path, path, "holds x twice")
    path = write(tmp_path / "other.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x", npy(CONTENT["x"]))
    refused(path, path, "holds x twice")


@pytest.mark.parametrize("name", ["a\nb", "../x", "x/", "\u2028", "y" * 60_000])
def test_names_of_arrays_are_shown_in_one_line(tmp_path, name):
    path = write(tmp_path / "toy.npz", **{name: CONTENT["x"]})
    assert len(refused(path, path, "unknown array ")) < 1000


def test_an_archive_of_no_arrays(tmp_path):
    np.savez(tmp_path / "toy.npz")
    refused(tmp_path / "toy.npz", tmp_path / "toy.npz", "has no array 'x'")


@pytest.mark.parametrize("name", ["x", *slow("y", "more")])
def test_a_bomb_is_not_unpacked(tmp_path, name):
    # Less than a hundredth of what it stands for.
    path = tmp_path / "toy.npz"
    rows = FREE_BYTES // 48
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key in CONTENT.keys() - {name}:
            archive.writestr(f"{key}.npy", npy(CONTENT[key]))
        with archive.open(f"{name}.npy", "w") as member:
            member.write(with_header(PLAIN.replace("(12, 3)", f"(12, {rows})"), b""))
            for _ in range(rows // 1000):
                member.write(bytes(48 * 1000))
            member.write(bytes(48 * (rows % 1000)))
    assert path.stat().st_size < 2**22
    refused(path, path, "more than 100 times as many")


def test_a_large_file_of_holes_is_not_read(tmp_path):
    path = tmp_path / "toy.npz"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**40)
    refused(path, path)


def test_zeros_that_are_compressed_far_are_read_if_they_are_few(tmp_path):
    content = CONTENT | {"x": np.zeros((N, 1000, 100), np.float32)}
    np.savez_compressed(tmp_path / "toy.npz", **content)
    assert (tmp_path / "toy.npz").stat().st_size * 200 < content["x"].nbytes
    assert load_arrays(tmp_path / "toy.npz").inputs.shape == (N, 1000, 100)


# What is no file.


@pytest.mark.parametrize("make", [*ODD.values(), lambda path: None], ids=[*ODD, "nothing"])
def test_only_regular_files_are_opened(tmp_path, make):
    make(tmp_path / "toy.npz")
    refused(tmp_path / "toy.npz", tmp_path / "toy.npz")


@pytest.mark.parametrize("name", ["x" * 256 + ".npz", "x" * 5000, "a\0b.npz", "\ud800.npz", "file/x.npz"])
def test_names_that_cannot_be(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / name, "cannot read " if "\ud800" not in name else "\\ud800")


def test_a_name_that_is_no_text_is_refused_before_any_work(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.npz"))
    write(path)
    refused(path, r"caf\udce9.npz: the data set is named after the file", "rename the file")


def test_files_without_permission(tmp_path):
    write(tmp_path / "toy.npz").chmod(0)
    with without_rights():
        refused(tmp_path / "toy.npz", tmp_path / "toy.npz", "Permission denied")


# Values.


def strings(*codes):
    """Strings of one character each, which need not be one."""
    text = f"{{'descr': '<U1', 'fortran_order': False, 'shape': ({len(codes)},), }}"
    return with_header(text, np.uint32(codes).tobytes())


@pytest.mark.parametrize("code", [0xD800, 0xDFFF, 0x110000, 0xFFFFFFFF])
@pytest.mark.parametrize("name", ["y", "domain", "class_names", "domain_names"])
def test_strings_that_are_no_text(tmp_path, name, code):
    codes = {"class_names": [97, 98, code], "domain_names": [97, code]}.get(name, [97, 98, code] * 4)
    refused(write(tmp_path / "toy.npz", **{name: strings(*codes)}), tmp_path / "toy.npz", name, "no text")


def test_bools_that_are_none(tmp_path):
    flags = with_header("{'descr': '|b1', 'fortran_order': False, 'shape': (12,), }", bytes([0, 1, 2] * 4))
    refused(write(tmp_path / "toy.npz", validation=flags), tmp_path / "toy.npz", "validation", "no bool")


@pytest.mark.parametrize("shape", [(N, 0), (N, 4, 0), (0, 3), (0, 0), (N, 0, 2**40), (0, 2**62)])
@pytest.mark.parametrize("dtype", ["<f4", "|u1"])
def test_features_of_size_zero(tmp_path, shape, dtype):
    x = with_header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}", b"")
    refused(write(tmp_path / "toy.npz", x=x), tmp_path / "toy.npz", "x must be [N, ...]", "got shape")


@pytest.mark.parametrize("name", ["y", "domain", "validation"])
@pytest.mark.parametrize("shape", [(0,), (), (N, 0), (N, 1), (1,)])
def test_arrays_that_do_not_go_with_the_features(tmp_path, name, shape):
    wrong = np.zeros(shape, bool if name == "validation" else int)
    refused(write(tmp_path / "toy.npz", **{name: wrong}), tmp_path / "toy.npz", f"{name} must have shape [12] like x")


@pytest.mark.parametrize("name", ["class_names", "domain_names"])
@pytest.mark.parametrize("names", [[], [[]], [["a"], ["b"]], "a", [""], ["a", "a"], [b"a", b"b"]])
def test_names_that_cannot_name(tmp_path, name, names):
    names = np.array(names, None if len(names) else "<U1")
    refused(write(tmp_path / "toy.npz", **{name: names}), tmp_path / "toy.npz")


def test_as_many_domains_and_classes_as_examples_take_no_table_of_both(tmp_path):
    many = 20_000
    path = tmp_path / "toy.npz"
    np.savez(path, x=np.zeros((many, 1), np.float16), y=np.arange(many), domain=np.arange(many))
    refused(path, path, "class 1 is missing in domain 0")


@pytest.mark.parametrize(
    ("y", "domain", "message"),
    [
        ([0, 1, 0, 1], ["a", "a", "b", "b"], None),
        ([0, 1, 0, 0], ["a", "a", "b", "b"], "class 1 is missing in domain b"),
        ([1, 1, 0, 1], ["a", "a", "b", "b"], "class 0 is missing in domain a"),
        ([0, 0, 0, 1], ["a", "a", "b", "b"], "class 1 is missing in domain a"),
    ],
)
def test_the_first_missing_class_is_named(tmp_path, y, domain, message):
    np.savez(tmp_path / "toy.npz", x=np.zeros((4, 1)), y=y, domain=domain)
    if message is None:
        load_arrays(tmp_path / "toy.npz")
    else:
        refused(tmp_path / "toy.npz", message)
