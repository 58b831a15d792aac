"""No relative of SAM costs more than its formula: XLA's counts, in steps of ERM."""

import json

import jax
import pytest

from benchmarks import sam_family_cost

STORED = json.loads(sam_family_cost.PATH.read_text())
DOMAINS = 4


@pytest.fixture(autouse=True)
def _as_a_user_runs_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        yield


def formula(name, forward, statistics):
    """Gradients, and forward and backward passes alone, of each kind of step; the dear one first.

    BatchNorm's running statistics are those of the whole batch at w, which DGSAM does not look at otherwise.
    """
    backward = 1 - forward
    gradual = (DOMAINS + 1) / DOMAINS
    return {
        "SAM": [2],
        "DISAM": [2],
        "F-SAM": [2],
        "F-SAM+DISAM": [2],
        "LookSAM": [2, 1],
        # What is kept is orthogonal to the gradient of the mean loss, and the perturbation is along another one.
        "LookSAM+DISAM": [2 + backward, 1],
        "ESAM": [1 + forward + 0.5],
        "ESAM+DISAM": [1 + forward + 0.5],
        "AE-SAM": [2, 1],
        "AE-SAM+DISAM": [2 + backward, 1],
        "DGSAM": [gradual + forward * statistics],
        "DGSAM+DISAM": [gradual + forward],
        "FAD": [4],
        "FAD+DISAM": [4 + 2 * backward],
    }[name]


def check(network, name, found, forward):
    wanted = formula(name, forward, statistics=network == "conv net")
    assert len(found) == len(wanted)
    for seen, allowed in zip(found, wanted, strict=True):
        # A gate that never sees the passes would pass anything.
        assert 0.98 * allowed <= seen <= 1.015 * allowed, f"{network}, {name}: {seen:.4f} steps of ERM, not {allowed}"


@pytest.mark.parametrize("network", sam_family_cost.WORKS)
def test_the_stored_counts_are_those_of_the_formulas(network):
    stored = STORED["steps of ERM"][network]
    assert set(stored) == {*sam_family_cost.NAMES, "forward pass"}
    for name in sam_family_cost.NAMES:
        check(network, name, stored[name], stored["forward pass"][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["F-SAM", "LookSAM+DISAM", "ESAM", "AE-SAM+DISAM", "DGSAM+DISAM", "FAD"])
def test_a_step_costs_what_is_stored(name):
    work = sam_family_cost.WORKS["MLP"]()
    found = sam_family_cost.in_steps_of_erm(work, (name,))
    check("MLP", name, found[name], found["forward pass"][0])
    if jax.__version__ == STORED["jax"]:
        assert found[name] == pytest.approx(STORED["steps of ERM"]["MLP"][name], rel=0.01), sam_family_cost.__doc__
