"""The figures show the numbers that they are given, without pyplot; what cannot be drawn is said."""

import subprocess
import sys

import numpy as np
import pytest

from disam_jax import sharpness
from disam_jax.sharpness import plots

NAMES = ("art", "$photo$", "sketch")


def plane():
    x = np.linspace(-1, 1, 7)
    bowl = 0.1 + x[None] ** 2 + 2 * x[:, None] ** 2
    losses = np.stack([bowl, 2 * bowl, 5 * bowl], -1)
    losses[0, 0, 1] = np.nan
    return sharpness.Landscape(x, x, losses, losses[..., 0], losses[3, 3], NAMES, 2)


def line():
    x = np.linspace(-1, 1, 9)
    losses = x[:, None] ** 2 * np.array([1.0, 2.0, 3.0]) + 1
    losses[0, 2] = np.inf
    return sharpness.Landscape(x, None, losses, losses[:, 0], losses[4], NAMES, 2)


def eigenvalues(k=3):
    values = np.arange(3, 0, -1)[:k] * np.ones((4, 1))
    errors = np.full((4, k), 0.25)
    return sharpness.HessianEigenvalues(values[:3], values[3], errors[:3], errors[3], None, NAMES, 2)


def similarity():
    cosines = np.array([[1, 0.5, np.nan], [0.5, 1, np.nan], [np.nan] * 3])
    return sharpness.GradientSimilarity(cosines, np.array([1.0, 2, 0]), np.array([0.9, -0.8, np.nan]), 1.0, NAMES, 2)


FIGURES = {
    "landscape": lambda: plots.draw_landscape(plane(), title="a title"),
    "curves": lambda: plots.draw_curves(line(), title="a title"),
    "spectrum": lambda: plots.draw_spectrum(eigenvalues(), title="a title"),
    "similarity": lambda: plots.draw_similarity(similarity(), title="a title"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_saved(tmp_path, name):
    figure = FIGURES[name]()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle() == "a title"


@pytest.mark.slow
def test_panels_share_their_levels():
    figure = plots.draw_landscape(plane())
    *panels, _bar = figure.axes
    assert [p.get_title() for p in panels] == ["art", "$photo$", "sketch (held out)", "mixture"]
    levels = [p.collections[0].levels for p in panels]
    assert levels[0][0] == pytest.approx(0.1)
    assert levels[0][-1] == pytest.approx(5 * 3.1)
    for each in levels[1:]:
        np.testing.assert_array_equal(each, levels[0])


ANY = ("_background", r"$\no$", "new\nline")
VISIBLE = ["_background", r"$\no$", "new line (held out)", "mixture"]


def test_every_curve_is_named_in_the_legend():
    figure = plots.draw_curves(line()._replace(names=ANY))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == VISIBLE
    assert len(figure.axes[0].get_legend_handles_labels()[0]) == 4


@pytest.mark.slow
def test_any_name_can_be_drawn_whatever_the_user_set(tmp_path):
    from matplotlib import rc_context

    drawn = {
        "landscape": plots.draw_landscape(plane()._replace(names=ANY), title=ANY[1]),
        "curves": plots.draw_curves(line()._replace(names=ANY), title=ANY[1]),
        "spectrum": plots.draw_spectrum(eigenvalues()._replace(names=ANY), title=ANY[1]),
        "similarity": plots.draw_similarity(similarity()._replace(names=ANY), title=ANY[1]),
    }
    assert [panel.get_title() for panel in drawn["landscape"].axes[:4]] == VISIBLE
    for name, panel in (("spectrum", drawn["spectrum"].axes[0]), ("similarity", drawn["similarity"].axes[0])):
        assert [label.get_text() for label in panel.get_xticklabels()] == VISIBLE, name
    for name, figure in drawn.items():
        # As a user saves it, with formulas on.
        with rc_context({"text.parse_math": True}):
            figure.savefig(tmp_path / f"{name}.pdf")


def test_curves_have_the_losses_and_a_gap():
    panel = plots.draw_curves(line(), log=True).axes[0]
    drawn = {artist.get_label(): artist for artist in panel.get_lines()}
    np.testing.assert_array_equal(drawn["art"].get_ydata(), line().losses[:, 0])
    held = drawn["sketch (held out)"]
    np.testing.assert_array_equal(np.isnan(held.get_ydata()), [True, *[False] * 8])
    assert held.is_dashed()
    assert not drawn["art"].is_dashed()
    assert panel.get_yscale() == "log"


def test_bars_have_the_eigenvalues():
    panel = plots.draw_spectrum(eigenvalues(2)).axes[0]
    np.testing.assert_array_equal([bar.get_height() for bar in panel.patches], [3] * 4 + [2] * 4)


def test_cells_have_the_cosines():
    panel = plots.draw_similarity(similarity()).axes[0]
    texts = [text.get_text() for text in panel.texts]
    assert texts == ["1.00", "0.50", "0.90", "0.50", "1.00", "\N{MINUS SIGN}0.80"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.draw_landscape(line()), "has 1 direction: draw it with draw_curves"),
        (lambda: plots.draw_curves(plane()), "has 2 directions: draw it with draw_landscape"),
        (lambda: plots.draw_curves(line()._replace(losses=np.full((9, 3), np.nan))), "no finite loss"),
        (lambda: plots.draw_landscape(plane()._replace(losses=np.ones((7, 7, 3)), mixture=np.ones((7, 7)))), "is 1:"),
    ],
)
def test_what_cannot_be_drawn_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_nothing_optional_is_imported_and_missing_packages_are_named():
    code = (
        "import sys; sys.modules['matfree'] = sys.modules['matplotlib'] = None\n"
        "import numpy as np, jax\n"
        "from disam_jax import sharpness\n"
        "print('scipy.special' in sys.modules and 'flax' in sys.modules)\n"
        "s = sharpness.loss_surface(lambda w, x: x * w, np.ones(2, np.float32), [0, 1])\n"
        "for call in (lambda: sharpness.hessian_trace(s, np.float32(1), key=jax.random.key(0)),\n"
        "             lambda: sharpness.plots.look().__enter__()):\n"
        "    try: call()\n"
        "    except ModuleNotFoundError as error: print(error)"
    )
    assert python(code).splitlines() == [
        "False",
        'the Hessians of disam_jax.sharpness need matfree: pip install "disam-jax[sharpness]"',
        'the figures of disam_jax.sharpness need Matplotlib: pip install "disam-jax[sharpness]"',
    ]


@pytest.mark.slow
def test_no_figure_is_opened_in_pyplot():
    code = (
        "import sys, numpy as np\n"
        "from disam_jax import sharpness\n"
        "x = np.linspace(-1, 1, 3); y = np.stack([x**2] * 2, -1)\n"
        "sharpness.plots.draw_curves(sharpness.Landscape(x, None, y, x**2, y[1], ('a', 'b'), None))\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    assert python(code) == "False"
