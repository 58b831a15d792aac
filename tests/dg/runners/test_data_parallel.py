"""A batch that is dealt over the devices, here eight simulated ones, has the results of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.data.load import CachedFeatures
from disam_jax.dg.data.splits import split
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods import find_methods
from disam_jax.dg.models.registry import make_network
from disam_jax.dg.results import Run
from disam_jax.dg.runners import make
from disam_jax.dg.runners.devices import check_batch, everywhere, split_batches
from disam_jax.dg.sweep import hparams, results_file
from disam_jax.dg.sweep import run as sweep
from disam_jax.dg.training.config import TrainConfig

SIZE = 8
CONFIG = TrainConfig(model="conv", steps=3, learning_rate=0.1, rho=0.3, per_domain=4, evaluations=1, block=8, probe=4)
NETWORK = make_network("conv", (SIZE, SIZE, 3), 2, widths=(4,), norm="batch", dropout=0.3)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = [np.arange(12 + 2 * d) % 2 for d in range(3)]
    images = [rng.integers(0, 100 + 80 * y[:, None, None, None], (len(y), SIZE, SIZE, 3), np.uint8) for y in labels]
    return join_domains("toy", images, labels, "abc", ["cat", "dog"])


def kept(data, streamed):
    """In memory, or on disk as activations are."""
    return dataclasses.replace(CachedFeatures.of(data, data.inputs, origin="kept"), streamed=True) if streamed else data


def run(data, out, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    methods = find_methods(["disam"])
    plan = sweep.Plan({"DISAM": hparams.random_candidates(methods["DISAM"], config, 2, 0)}, (1,), (0,))
    return sweep.run_sweep(data, NETWORK, config, methods, plan, out, runs_at_once=2)[0]


@pytest.fixture(scope="module")
def computed():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_a_batch_over_all_devices_has_the_results_of_one_device(data, computed, tmp_path, streamed):
    assert jax.device_count() == 8
    if "one" not in computed:
        computed["one"] = run(data, tmp_path / "one")
    one = computed["one"]
    found = run(kept(data, streamed), tmp_path / "all", data_parallel=True)
    assert found.header["methods"]["DISAM"]["runs_at_once"] == 2
    for field in results_file.MEASURED:
        np.testing.assert_allclose(getattr(found, field), getattr(one, field), rtol=2e-4, atol=2e-5, err_msg=field)
    assert np.abs(one.losses[0] - one.losses[1]).max() > 1e-3
    assert found.header["setting"]["data_parallel"]
    flops = [each.header["methods"]["DISAM"]["flops"] for each in (one, found)]
    assert flops[1] == pytest.approx(flops[0], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_the_gradients_of_the_parts_are_added_up(data, streamed):
    config = dataclasses.replace(CONFIG, data_parallel=True)
    splits = (split(data, 0, config.holdout),)
    methods = find_methods(["erm"])
    runner = make.runner_factory(kept(data, streamed), config, splits, (0,), 4)("ERM", NETWORK, methods["ERM"])
    compiled = runner.compile([Run("ERM", 1, 0, 0, {"learning_rate": 0.1, "weight_decay": 0.0})])
    text = (compiled.advance if streamed else compiled).as_text()
    assert "all-reduce" in text


@pytest.mark.parametrize(("size", "spec"), [(16, PartitionSpec("batch")), (12, PartitionSpec())])
def test_inputs_are_dealt_where_they_can_be_dealt_evenly(size, spec):
    network = NETWORK._replace(apply=lambda params, state, x, key, train: 2 * x)
    apply = jax.jit(lambda x: split_batches(network).apply({}, {}, x, None, False))
    found = apply(jax.device_put(jnp.ones((size, 3)), everywhere()))
    assert found.sharding.is_equivalent_to(jax.sharding.NamedSharding(everywhere().mesh, spec), 2)
    np.testing.assert_array_equal(found, 2)


@pytest.mark.parametrize(
    ("per_domain", "sources", "advice"),
    [(16, 3, None), (4, 2, None), (3, 2, 4), (5, 3, 8), (1, 8, None), (9, 1, 16), (2, 5, 8), (7, 6, 8)],
)
def test_a_batch_that_cannot_be_dealt_is_told_what_can(per_domain, sources, advice):
    config = TrainConfig(per_domain=per_domain, data_parallel=True)
    if advice is None:
        return check_batch(config, sources)
    with pytest.raises(InputError, match=f"over 8 devices evenly: write --per-domain {advice}$"):
        check_batch(config, sources)
    return check_batch(dataclasses.replace(config, per_domain=advice), sources)


def test_one_device_has_nothing_to_share(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--data-parallel deals a batch over several devices, and jax has one"):
        check_batch(TrainConfig(data_parallel=True), 3)
