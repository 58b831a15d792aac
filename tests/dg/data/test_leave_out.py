"""Data sets without some of their domains: what is left is as it was, in memory and in files."""

import numpy as np
import pytest

from disam_jax.dg.cli import main as cli
from disam_jax.dg.data.folder import list_images, load_images
from disam_jax.dg.data.leave_out import leave_out
from disam_jax.dg.data.load import stream_images
from disam_jax.dg.errors import InputError


@pytest.mark.parametrize(("names", "kept"), [(["b"], [0, 2]), (["a"], [1, 2]), ([], [0, 1, 2])])
def test_the_other_domains_are_as_they_were(toy, names, kept):
    rest = leave_out(toy, names)
    assert rest.domain_names == tuple("abc"[place] for place in kept)
    assert rest.counts.tolist() == toy.counts[kept].tolist()
    for new, old in enumerate(kept):
        for field in ("inputs", "labels"):
            values = getattr(rest, field)[rest.domain_ids == new]
            np.testing.assert_array_equal(values, getattr(toy, field)[toy.domain_ids == old])


def test_images_in_files_are_those_of_a_folder_without_the_domain(image_folder, tmp_path):
    streamed = leave_out(stream_images(list_images(image_folder), 8), ["photo"])
    (image_folder / "photo").rename(tmp_path / "elsewhere")
    wanted = list_images(image_folder)
    assert streamed.listing.images == wanted.images
    assert streamed.domain_names == wanted.domain_names
    np.testing.assert_array_equal(streamed.labels, load_images(wanted, 8).labels)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["d"], "unknown --leave-out d: the domains of toy are a, b, c"),
        (["a", "c"], "--leave-out leaves 1 domain of toy: at least two must stay"),
    ],
)
def test_what_cannot_be_left_out_is_said(toy, names, said):
    with pytest.raises(InputError, match=said):
        leave_out(toy, names)


@pytest.mark.slow
def test_a_sweep_leaves_domains_out(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(["compare", "--method", "erm", "--leave-out", "noise", "texture", "--seeds", "2", *out]) == 0
    assert "4 targets x 2 seeds = 8 runs" in capsys.readouterr().out
