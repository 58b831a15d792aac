"""Data sets in Git repositories: small local repositories in the layouts of the true ones, and no network."""

import dataclasses
import hashlib
import os
import pathlib
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from support import save_image

from disam_jax.dg.cli import main as cli
from disam_jax.dg.data import load
from disam_jax.dg.data.sources import checkout, convert, get
from disam_jax.dg.data.sources.registry import SOURCES, PlacedImage, Source
from disam_jax.dg.errors import InputError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

ROOT = pathlib.Path(__file__).parents[3]


def git(*arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder):
    """Makes a commit of all that is in a folder, in a repository beside it; its path and the commit."""
    repository = folder.parent / "repository.git"
    if not repository.exists():
        git("init", "-q", "--bare", repository)
    inside = (f"--git-dir={repository}", f"--work-tree={folder}")
    git(*inside, "add", "-A")
    git(*inside, "commit", "-q", "-m", "data")
    return repository, git(*inside, "rev-parse", "HEAD")


def make_pacs(folder):
    """One image of each class and domain, of the size of its place; a file that is no image beside them."""
    for d, (domain, counts) in enumerate(SOURCES["PACS"].counts.items()):
        for c, name in enumerate(counts):
            place = folder / "PACS" / domain / name
            place.mkdir(parents=True)
            save_image(place / ("pic_001.png" if domain == "sketch" else "pic_001.jpg"), seed=10 * d + c)
    (folder / "README.md").write_text("PACS\n")
    (folder / "PACS" / "photo" / "dog" / "notes.txt").write_text("no image\n")
    return {domain: dict.fromkeys(counts, 1) for domain, counts in SOURCES["PACS"].counts.items()}


def make_office(folder):
    for d, domain in enumerate(("amazon", "Caltech", "dslr", "webcam")):
        for c, name in enumerate(SOURCES["OfficeCaltech10"].counts["dslr"]):
            (folder / domain / name).mkdir(parents=True)
            save_image(folder / domain / name / "frame_0001.jpg", seed=10 * d + c)
    (folder / "amazon" / ".DS_Store").write_bytes(b"\0")
    return {domain: dict.fromkeys(counts, 1) for domain, counts in SOURCES["OfficeCaltech10"].counts.items()}


def make_rsscn7(folder):
    """The first and the last image of each scale."""
    for letter, name in zip(
        "abcdefg", ("Grass", "Field", "Industry", "RiverLake", "Forest", "Resident", "Parking"), strict=True
    ):
        (folder / f"{letter}{name}").mkdir(parents=True)
        for number in (1, 100, 101, 200, 201, 300, 301, 400):
            save_image(folder / f"{letter}{name}" / f"{letter}{number:03}.jpg", seed=number)
    return {scale: dict.fromkeys(counts, 2) for scale, counts in SOURCES["RSSCN7"].counts.items()}


def make_heart(folder):
    (folder / "Datasets").mkdir(parents=True)
    lines = {
        "cleveland": "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n"
        "67.0,1.0,4.0,160.0,286.0,0.0,2.0,108.0,1.0,1.5,2.0,?,3.0,2\n",
        "hungarian": "28,1,2,130,132,0,2,185,0,0,-9,-9,-9,0\n\n40,1,2,140,?,0,0,172,0,0,?,?,?,1\n",
        "switzerland": "32,1,1,95,0,-9,0,127,0,-.7,1,-9,-9,4\n34,1,4,115,0,-9,-9,154,0,.2,1,-9,-9,0\n",
        "va": "63,1,4,140,260,0,1,112,1,3,2,-9,-9,3\n44,1,4,130,209,0,1,127,0,0,-9,-9,-9,0\n",
    }
    for name, text in lines.items():
        header = ",".join(f"X{number}" for number in range(1, 15)) + "\n"
        (folder / "Datasets" / f"processed.{name}.data").write_text(header + text)
    return {domain: {"healthy": 1, "disease": 1} for domain in SOURCES["heart"].counts}


def make_reviews(folder):
    for domain, counts in SOURCES["reviews"].counts.items():
        (folder / "data" / domain).mkdir(parents=True)
        for name in counts:
            reviews = "".join(
                f"<review>\n<title>\nhidden\n</title>\n<review_text>\n{text}\n</review_text>\n</review>\n"
                for text in (f"The {domain} is {name} & caf\xe9: good, slow, ugly.", "two\nlines")
            )
            path = folder / "data" / domain / f"{name}.review"
            path.write_bytes(f"<reviews>\n{reviews}</reviews>\n".encode("latin-1"))
    return {domain: dict.fromkeys(counts, 2) for domain, counts in SOURCES["reviews"].counts.items()}


MAKE = {
    "PACS": make_pacs,
    "OfficeCaltech10": make_office,
    "RSSCN7": make_rsscn7,
    "heart": make_heart,
    "reviews": make_reviews,
}


class Toy:
    """A source that lies in a repository of this test, under the name of a true one.

    Attributes:
        folder: what the repository holds; `commit` makes a new commit of it the one that is asked for.
        repository: the bare repository.
    """

    def __init__(self, name, tmp_path, monkeypatch):
        self.name, self.monkeypatch = name, monkeypatch
        self.folder, self.to, self.cache = tmp_path / "files", tmp_path / "to", tmp_path / "cache"
        self.counts = MAKE[name](self.folder)
        self.commit()

    def commit(self):
        self.repository, self.head = commit(self.folder)
        self.know(commit=self.head, url=str(self.repository), counts=self.counts, checksum="")

    def know(self, **values):
        self.source = dataclasses.replace(SOURCES[self.name], **values)
        self.monkeypatch.setitem(SOURCES._read(), self.name, self.source)

    def get(self, **options):
        return get.get_data_set(self.name, **{"to": self.to, "cache": self.cache, **options})

    def refused(self, **options):
        """The one line that says why; nothing is written and nothing is left."""
        with pytest.raises(InputError) as error:
            self.get(**options)
        assert "\n" not in str(error.value)
        assert not self.to.exists()
        assert self.cached() == []
        return str(error.value)

    def cached(self):
        return sorted(path.name for path in self.cache.iterdir()) if self.cache.exists() else []


@pytest.fixture
def toy(tmp_path, monkeypatch):
    return lambda name: Toy(name, tmp_path, monkeypatch)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script called git before the true one on PATH; `$GIT` in it is the true one."""

    def make(script):
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        path = folder / "git"
        path.write_text(f"#!/bin/sh\nGIT={shutil.which('git', path=PATH)}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{PATH}")

    return make


PATH = os.environ.get("PATH", "")


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# What is written.


@pytest.mark.parametrize("name", MAKE)
def test_what_is_written_is_read_as_data(toy, name):
    made = toy(name)
    written = made.get()
    data = load.open_data(str(written.data), image_size=8, features=False)
    names = sorted(made.counts)
    assert data.domain_names == tuple(names)
    assert data.class_names == tuple(sorted(made.counts[names[0]]))
    assert data.counts.tolist() == [sum(made.counts[domain].values()) for domain in names]
    assert [path.name for path in made.to.iterdir() if path.name.startswith(".")] == []
    assert (written.name, written.source.counts) == (name, made.counts)


@pytest.mark.parametrize(
    ("name", "start"), [("PACS", "PACS/"), ("OfficeCaltech10", "")], ids=["PACS", "OfficeCaltech10"]
)
def test_images_are_copied_as_they_are(toy, name, start):
    made = toy(name)
    made.get()
    for path in files(made.to):
        domain, rest = path.split("/", 1)
        original = made.folder / start / {"caltech": "Caltech"}.get(domain, domain) / rest
        assert (made.to / path).read_bytes() == original.read_bytes()
    assert len(files(made.to)) == sum(sum(counts.values()) for counts in made.counts.values())


def test_scales_are_ranges_of_numbers(toy):
    made = toy("RSSCN7")
    made.get()
    assert [path for path in files(made.to) if "Forest" in path] == [
        f"scale{scale}/Forest/e{number:03}.jpg"
        for scale, numbers in ((1, (1, 100)), (2, (101, 200)), (3, (201, 300)), (4, (301, 400)))
        for number in numbers
    ]


def test_scaled_images_are_jpeg_files_of_pillows_own_lanczos(toy, tmp_path):
    from PIL import Image

    made = toy("PACS")
    made.get(image_size=12)
    assert {path.rpartition(".")[2] for path in files(made.to)} == {"jpg"}
    with Image.open(made.folder / "PACS" / "sketch" / "dog" / "pic_001.png") as image:
        image.convert("RGB").resize((12, 12), Image.LANCZOS).save(tmp_path / "x.jpg", quality=88, optimize=True)
    assert (made.to / "sketch" / "dog" / "pic_001.jpg").read_bytes() == (tmp_path / "x.jpg").read_bytes()


def test_attributes_of_patients_and_flags_of_missing_ones(toy):
    made = toy("heart")
    with np.load(made.get().data) as arrays:
        x, y, domain = arrays["x"], arrays["y"], arrays["domain"]
    assert (x.shape, x.dtype) == ((8, 26), np.float32)
    assert domain.tolist() == [each for each in made.counts for _ in range(2)]
    assert y.tolist() == ["healthy", "disease", "healthy", "disease", "disease", "healthy", "disease", "healthy"]
    np.testing.assert_array_equal(x[0, :13], np.float32([63, 1, 1, 145, 233, 1, 2, 150, 0, 2.3, 3, 0, 6]))
    # Hungarian, the second: cholesterol, slope, vessels and thal are missing.
    np.testing.assert_array_equal(x[3, :13], np.float32([40, 1, 2, 140, 0, 0, 0, 172, 0, 0, 0, 0, 0]))
    assert np.flatnonzero(x[3, 13:]).tolist() == [4, 10, 11, 12]
    # A number below zero is a number.
    assert x[4, 9] == np.float32(-0.7)
    assert np.flatnonzero(x[4, 13:]).tolist() == [5, 11, 12]


def test_reviews_are_hashed_words_of_their_texts_alone(toy):
    from sklearn.feature_extraction.text import HashingVectorizer

    made = toy("reviews")
    with np.load(made.get().data) as arrays:
        x, y = arrays["x"], arrays["y"]
    assert (x.shape, x.dtype) == ((16, 2048), np.float16)
    assert y.tolist() == ["negative", "negative", "positive", "positive"] * 4
    # Each word beside stop words counts once, whatever the sign of its hash.
    words = ["books negative caf\xe9 good slow ugly"]
    signed = HashingVectorizer(n_features=2048).transform(words).toarray()[0]
    assert signed.min() < 0 < signed.max()
    np.testing.assert_allclose(x[0], np.abs(signed), rtol=1e-3)


# What is compared.


@pytest.mark.slow
def test_the_checksum_is_that_of_the_list_of_sha256sum(toy):
    made = toy("PACS")
    checksum = made.get().checksum
    lines = [f"{hashlib.sha256((made.to / path).read_bytes()).hexdigest()}  {path}\n" for path in files(made.to)]
    assert checksum == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_checksum_of_arrays_does_not_depend_on_their_compression(toy, tmp_path):
    made = toy("heart")
    written = made.get()
    (tmp_path / "other").mkdir()
    with np.load(written.data) as arrays:
        np.savez(tmp_path / "other" / "heart.npz", **arrays)
        assert convert.tree_checksum(tmp_path / "other") == written.checksum
        np.savez(tmp_path / "other" / "heart.npz", **{**arrays, "x": arrays["x"] + 1})
    assert convert.tree_checksum(tmp_path / "other") != written.checksum


def test_another_checksum_is_refused_and_nothing_is_written(toy):
    made = toy("heart")
    checksum = made.get().checksum
    shutil.rmtree(made.to)
    made.know(checksum=checksum)
    assert made.get().expected == checksum
    shutil.rmtree(made.to)
    made.know(checksum="0" * 64)
    with pytest.raises(InputError, match=f"has the SHA-256 {checksum}, expected {'0' * 64}; nothing is written"):
        made.get()
    assert not made.to.exists()


def test_a_checksum_that_depends_on_a_library_is_told_and_not_refused(toy, capsys):
    made = toy("reviews")
    made.know(checksum="0" * 64)
    assert cli.main(["data", "reviews", "--to", str(made.to), "--cache", str(made.cache)]) == 0
    assert f"expected {'0' * 64}; another version of scikit-learn may have made" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["one less", "one more"])
def test_counts_that_differ_are_named(toy, change):
    made = toy("PACS")
    place = made.folder / "PACS" / "cartoon" / "house"
    if change == "one less":
        (place / "pic_001.jpg").unlink()
        (place / "list.txt").write_text("none\n")
    else:
        save_image(place / "pic_002.jpg", seed=0)
    made.commit()
    number = 0 if change == "one less" else 2
    with pytest.raises(InputError) as error:
        made.get()
    assert str(error.value) == (
        f"PACS: domain cartoon has {number} examples of class house, expected 1; nothing is written"
    )
    assert not made.to.exists()


def remove_domain(made):
    shutil.rmtree(made.folder / "PACS" / "sketch")
    return "the repository is not laid out as expected", "sketch"


def remove_hospital(made):
    (made.folder / "Datasets" / "processed.va.data").unlink()
    return "cannot read", "processed.va.data: No such file or directory"


def short_row(made):
    with (made.folder / "Datasets" / "processed.va.data").open("a") as file:
        file.write("1,2,3\n")
    return "processed.va.data line 4: expected 14 numbers, got 3"


def no_number(made):
    with (made.folder / "Datasets" / "processed.va.data").open("a") as file:
        file.write("63,1,4,140,260,0,1,112,1,3,2,-9,x,3\n")
    return "processed.va.data line 4: expected numbers, got"


def no_review(made):
    (made.folder / "data" / "dvd" / "negative.review").write_text("<html></html>\n")
    return "negative.review has no <review_text>"


def wrong_name(made):
    save_image(made.folder / "aGrass" / "a401.jpg", seed=0)
    return "a401.jpg: the name must be a letter and a number from 001 to 400"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("PACS", remove_domain),
        ("heart", remove_hospital),
        ("heart", short_row),
        ("heart", no_number),
        ("reviews", no_review),
        ("RSSCN7", wrong_name),
    ],
)
def test_a_repository_of_another_layout_is_refused(toy, name, damage):
    made = toy(name)
    reasons = damage(made)
    made.commit()
    with pytest.raises(InputError) as error:
        made.get()
    for each in (reasons,) if isinstance(reasons, str) else reasons:
        assert each in str(error.value)
    assert not made.to.exists()


def test_an_image_that_cannot_be_scaled_is_named(toy):
    made = toy("PACS")
    (made.folder / "PACS" / "photo" / "dog" / "pic_001.jpg").write_bytes(b"no image")
    made.commit()
    with pytest.raises(InputError, match=r"cannot read image .*photo/dog/pic_001.jpg"):
        made.get(image_size=8)
    assert not made.to.exists()


def test_two_images_that_would_be_one_file_are_named(toy):
    made = toy("PACS")
    save_image(made.folder / "PACS" / "photo" / "dog" / "pic_001.png", seed=0)
    made.counts["photo"]["dog"] = 2
    made.commit()
    with pytest.raises(InputError, match=r"pic_001.jpg and .*pic_001.png would both be photo/dog/pic_001.jpg"):
        made.get(image_size=8)
    made.get()
    assert {"photo/dog/pic_001.jpg", "photo/dog/pic_001.png"} <= set(files(made.to))


# What is fetched.


def test_a_commit_is_fetched_once_without_its_history(toy):
    made = toy("heart")
    (made.folder / "second.txt").write_text("the second of three commits\n")
    made.commit()
    wanted = made.head
    (made.folder / "later.txt").write_text("a later commit\n")
    commit(made.folder)
    told = []
    made.get(on_fetch=told.append)
    (cached,) = made.cache.iterdir()
    assert git("-C", cached, "rev-list", "--all", "HEAD").split() == [wanted]
    assert not (cached / "later.txt").exists()
    shutil.rmtree(made.to)
    shutil.rmtree(made.repository)
    made.get(on_fetch=told.append)
    assert len(told) == 1
    assert "fetching heart from" in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a file is gone", "a file is changed", "another commit", "no repository"])
def test_a_cache_that_is_damaged_is_fetched_anew(toy, damage):
    made = toy("heart")
    checksum = made.get().checksum
    shutil.rmtree(made.to)
    (cached,) = made.cache.iterdir()
    path = cached / "Datasets" / "processed.va.data"
    if damage == "a file is gone":
        path.unlink()
    elif damage == "a file is changed":
        path.write_text(path.read_text().replace("63", "64"))
    elif damage == "another commit":
        path.unlink()
        git("-C", cached, "commit", "-q", "-a", "-m", "other")
    else:
        shutil.rmtree(cached / ".git")
    assert made.get().checksum == checksum
    assert made.cached() == [cached.name]


def test_the_source_may_be_a_clone_here_or_an_address(toy, tmp_path, monkeypatch):
    made = toy("heart")
    made.know(url="https://nowhere.invalid/x/y")
    git("clone", "-q", made.repository, tmp_path / "my:clone")
    monkeypatch.chdir(tmp_path)
    for place, cache in (("my:clone", "one"), (made.repository.as_uri(), "two")):
        written = made.get(url=place, cache=tmp_path / cache)
        assert written.data.exists()
        shutil.rmtree(made.to)


def no_repository(made, tmp_path):
    (tmp_path / "empty").mkdir()
    return {"url": str(tmp_path / "empty")}, "it is not a Git repository that you can read"


def not_there(made, tmp_path):
    return {"url": "nowhere/x"}, "--source nowhere/x is neither there nor an address: write a folder or https://"


def other_commit(made, tmp_path):
    made.know(commit="1234" * 10)
    return {}, f"does not give out, commit {'1234' * 10}"


def no_network(made, tmp_path):
    return {"url": "http://127.0.0.1:9/x/y"}, "no network, or the host is not reachable; try again later, or clone it"


def file_in_the_way(made, tmp_path):
    (tmp_path / "file").write_text("")
    return {"cache": tmp_path / "file" / "cache"}, "give another --cache"


def no_git(made, tmp_path):
    made.monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return {}, "cannot start git (No such file or directory), which fetches the data: install it"


@pytest.mark.parametrize("problem", [no_repository, not_there, other_commit, no_network, file_in_the_way, no_git])
def test_what_cannot_be_fetched_is_one_line_that_says_what_to_do(toy, tmp_path, monkeypatch, problem):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = toy("heart")
    options, reason = problem(made, tmp_path)
    assert reason in made.refused(**options)


# As git and its transports print them.
SAID = {
    "fatal: unable to access 'https://a/b/': Could not resolve host: a": "no network",
    "fatal: unable to access 'https://a/b/': Failed to connect to a port 443 after 1 ms": "no network",
    "fatal: unable to access 'https://a/b/': Operation too slow. Less than 1 bytes/sec": "no network",
    "ssh: Could not resolve hostname a\nfatal: Could not read from remote repository.": "no network",
    "fatal: could not read Username for 'https://a': terminal prompts disabled": "it is not a Git repository",
    "remote: Repository not found.\nfatal: repository 'https://a/b/' not found": "it is not a Git repository",
    "fatal: detected dubious ownership in repository at '/a'": "it is not a Git repository",
    "error: Server does not allow request for unadvertised object 12": "does not give out, commit",
    "fatal: remote error: upload-pack: not our ref 12": "does not give out, commit",
    "fatal: write error: No space left on device\nfatal: early EOF": "the disk is full",
    "error: something new": "git failed; mend what it names",
    "": "git failed",
}


@pytest.mark.parametrize("said", SAID)
def test_what_git_says_is_told_apart(said):
    message = checkout.explain(said, "https://a/b", "12")
    assert message.startswith("cannot fetch https://a/b: ")
    assert SAID[said] in message
    assert "\n" not in message


def test_a_full_disk_is_told(toy, program):
    made = toy("heart")
    program(
        'case "$*" in *fetch*) echo "fatal: write error: No space left on device" >&2; exit 128;; esac; exec $GIT "$@"'
    )
    assert "the disk is full; free some space, or give a --cache on another disk" in made.refused()


def test_other_files_than_those_of_the_commit_are_refused(toy, program):
    made = toy("heart")
    wanted = made.head
    (made.folder / "later.txt").write_text("a later commit\n")
    _, later = commit(made.folder)
    program(f'case "$*" in *fetch*) exec $GIT $(echo "$@" | sed s/{wanted}/{later}/);; esac; exec $GIT "$@"')
    assert f"gave other files than those of commit {wanted}" in made.refused()


def test_a_fetch_that_hangs_is_given_up_with_all_that_it_started(toy, program, tmp_path):
    made = toy("heart")
    program(f'case "$*" in *fetch*) sleep 300 & echo $! > {tmp_path}/pid; wait;; esac; exec $GIT "$@"')
    before = time.monotonic()
    assert "it took more than 0.5 seconds; try again on a faster network" in made.refused(time_limit=0.5)
    assert time.monotonic() - before < 60
    pid = int((tmp_path / "pid").read_text())
    assert ended(pid)


def ended(pid, seconds=10.0):
    """Whether a process is gone, or ended and not yet waited for, soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = pathlib.Path(f"/proc/{pid}/status")
        if status.exists() and "State:\tZ" in status.read_text():
            return True
        time.sleep(0.05)
    return False


KILLED = """
import sys
from disam_jax.dg.data.sources.checkout import fetch_commit
from pathlib import Path
fetch_commit(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["fetch", "checkout"])
def test_a_fetch_that_is_killed_leaves_nothing_that_is_believed(toy, program, tmp_path, stage):
    made = toy("heart")
    marker = tmp_path / "begun"
    # Half of the work is done when the kill comes.
    program(
        f'case "$*" in *" {stage} "*) $GIT "$@"; rm -f */Datasets/*; echo $$ > {marker}.new; mv {marker}.new {marker}; '
        'sleep 300;; esac; exec $GIT "$@"'
    )
    place = made.cache / f"heart-{made.head}"
    command = [sys.executable, "-c", KILLED, str(made.repository), made.head, str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment) as process:
        while not marker.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    # A program that was started by one that is killed goes on.
    os.killpg(int(marker.read_text()), signal.SIGKILL)
    assert not place.exists()
    (left,) = made.cached()
    assert left.startswith(".unfinished-")
    made.monkeypatch.setenv("PATH", PATH)
    made.get()
    assert made.cached() == [place.name]


@pytest.mark.parametrize("where", ["cache", "to"])
def test_what_a_killed_run_left_is_removed(toy, where):
    made = toy("heart")
    left = {"cache": made.cache, "to": made.to}[where] / ".unfinished-1"
    (left / "repository" / ".git").mkdir(parents=True)
    made.get()
    assert not left.exists()
    assert made.cached() == [f"heart-{made.head}"]
    assert files(made.to) == ["heart.npz"]


def test_settings_of_the_user_do_not_change_files(toy, tmp_path, monkeypatch):
    made = toy("heart")
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    (hooks / "post-checkout").chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(f"[core]\nautocrlf = true\n[init]\ntemplateDir = {hooks.parent}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    # As in a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(made.repository))
    made.get()
    (cached,) = made.cache.iterdir()
    for path in files(made.folder):
        assert (cached / path).read_bytes() == (made.folder / path).read_bytes()
    assert not (tmp_path / "hooked").exists()


# Where it is written.


def test_a_folder_that_has_files_is_left_alone(toy):
    made = toy("heart")
    made.to.mkdir()
    (made.to / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"--to .*to is not empty: give a new folder"):
        made.get()
    assert files(made.to) == ["mine.txt"]
    assert made.cached() == []


def test_an_empty_folder_is_used_and_kept_after_an_error(toy):
    made = toy("heart")
    made.to.mkdir()
    with pytest.raises(InputError, match="is neither there nor an address"):
        made.get(url="nowhere")
    assert made.to.exists()
    made.know(counts={})
    with pytest.raises(InputError, match="expected 0"):
        made.get()
    assert list(made.to.iterdir()) == []
    made.know(counts=made.counts)
    made.get()


def test_a_file_in_place_of_the_folder_is_refused(toy):
    made = toy("heart")
    made.to.write_text("mine")
    with pytest.raises(InputError, match=r"--to .*to is not a folder"):
        made.get()
    assert made.to.read_text() == "mine"


def test_a_disk_that_is_full_while_images_are_written_is_told(toy, monkeypatch):
    made = toy("PACS")

    def full(source, place):
        raise OSError(28, "No space left on device", str(place))

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(InputError, match=r"cannot write to .*to: No space left on device"):
        made.get()
    assert not made.to.exists()


# The command line.


def test_the_command_prints_what_is_to_be_known(toy, capsys):
    made = toy("heart")
    made.know(checksum=made.get().checksum)
    shutil.rmtree(made.to)
    to = made.to.parent / "a b"
    assert cli.main(["data", "HEART", "--to", str(to), "--cache", str(made.cache)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert "disease          1          1            1           1    4" in lines
    assert f"source: {made.source.url}, commit {made.head}" in lines
    assert f"SHA-256: {made.source.checksum}, as expected" in lines
    assert f"licence: {made.source.licence}" in lines
    assert f"cite: {made.source.citation}" in lines
    assert lines[-1] == f"next: disam-jax compare --data '{to}/heart.npz'"


def test_the_next_command_reads_the_folder_and_not_a_data_set_of_its_name(toy, tmp_path, capsys, monkeypatch):
    made = toy("PACS")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "PACS", "--to", "PACS", "--cache", str(made.cache)]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert command[:3] == ["disam-jax", "compare", "--data"]
    assert load.open_data(command[3], image_size=8).counts.tolist() == [7] * 4


def test_the_checksum_of_scaled_images_is_not_compared(toy, capsys):
    made = toy("PACS")
    made.know(checksum="0" * 64)
    options = ["--to", str(made.to), "--cache", str(made.cache), "--image-size", "8"]
    assert cli.main(["data", "pacs", *options]) == 0
    printed = capsys.readouterr()
    assert "not compared, because the bytes of scaled images depend on the version of Pillow" in printed.out
    assert printed.err.startswith("disam-jax: fetching PACS from ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet"], "no data set imagenet to fetch: write PACS, OfficeCaltech10, RSSCN7, heart, reviews"),
        (["RSCN7"], "; is 'RSSCN7' meant?"),
        (["heart", "--image-size", "8"], "heart is a table and has no images: leave out --image-size"),
        (["PACS", "--image-size", "0"], "--image-size must be at least 1, got 0"),
        (["PACS", "--image-size", "9999"], "--image-size must be at most 8,192, got 9999"),
        (["PACS", "--source", "x"], "--source x is neither there nor an address"),
    ],
)
def test_what_the_command_refuses_is_one_line(tmp_path, capsys, arguments, message):
    to = tmp_path / "to"
    assert cli.main(["data", *arguments, "--to", str(to), "--cache", str(tmp_path / "cache")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not to.exists()


# The registry.


def test_the_default_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert get.default_cache() == tmp_path / "disam-jax"
    # A relative one is to be ignored, says its specification.
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert get.default_cache() == tmp_path / "home" / ".cache" / "disam-jax"


def test_each_source_is_complete():
    totals = {name: [sum(each.values()) for each in source.counts.values()] for name, source in SOURCES.items()}
    assert totals == {
        "PACS": [2048, 2344, 1670, 3929],
        "OfficeCaltech10": [958, 1123, 157, 295],
        "RSSCN7": [700] * 4,
        "heart": [303, 294, 123, 200],
        "reviews": [2000] * 4,
    }
    for source in SOURCES.values():
        assert len(source.commit) == 40
        assert int(source.commit, 16)
        assert len(source.checksum) == 64
        assert source.licence
        assert source.citation


def test_a_source_has_images_or_arrays():
    values = {"url": "", "commit": "", "megabytes": 1, "counts": {}, "licence": "", "citation": ""}
    images = lambda checkout: [PlacedImage(checkout, "a", "b")]
    with pytest.raises(ValueError, match="a source has images or arrays, and not both"):
        Source("toy", **values)
    with pytest.raises(ValueError, match="a source has images or arrays, and not both"):
        Source("toy", **values, images=images, arrays=lambda checkout: {})
