import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disam_jax.dg.data import batches as b
from disam_jax.dg.data import keys, sampling
from disam_jax.dg.data.domains import join_domains
from disam_jax.dg.data.splits import Split, seeded_split
from disam_jax.dg.errors import InputError

SIZES = (6, 11, 8, 5)


def make_data(dtype=np.float32, sizes=SIZES):
    """Each input holds its own row."""
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    inputs = [np.broadcast_to(part[:, None, None], (len(part), 2, 3)).astype(dtype) for part in rows]
    labels = [part % 3 for part in rows]
    return join_domains("toy", inputs, labels, [f"d{k}" for k in range(len(sizes))], "xyz")


def make_batches(data=None, **changes):
    data = make_data() if data is None else data
    given = {"sources": (3, 0, 1), "seed": 5, "target": 2, "per_domain": 4, "steps": 9, "split_seed": 0} | changes
    split = seeded_split(data.counts, given.pop("split_seed"))
    return b.MemoryBatches(data, split, **given)


def training_rows(data, split, domain):
    return split.order[data.starts[domain] :][: split.train_counts[domain]]


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def key_numbers(*keys):
    return [tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys]


def test_no_two_purposes_share_a_key():
    numbers = []
    for seed in range(2):
        for target in range(3):
            run = keys.run_key(seed, target)
            numbers += key_numbers(run, keys.init_key(run))
            for step in (0, 1, 2, 2**31 - 1):
                key = keys.step_key(run, step)
                numbers += key_numbers(key, keys.rows_key(key), keys.augmentation_key(key), keys.dropout_key(key))
    assert len(set(numbers)) == len(numbers) == 2 * 3 * (2 + 4 * 4)


def test_keys_of_many_runs_are_those_of_each():
    seeds, targets = jnp.arange(3, dtype=jnp.int32), jnp.arange(2, dtype=jnp.int32)
    found = jax.vmap(jax.vmap(keys.run_key, (0, None)), (None, 0))(seeds, targets)
    for target in range(2):
        for seed in range(3):
            assert key_numbers(found[target, seed]) == key_numbers(keys.run_key(seed, target))


def test_rows_come_from_the_training_split_of_their_domain_and_reach_all_of_it():
    data = make_data()
    split = seeded_split(data.counts, 1)
    plan = sampling.Plan(data.counts, split, (3, 0, 1), 5, 2, 4, 300)
    rows = plan.rows()
    assert rows.shape == (300, 3, 4)
    assert rows.dtype == np.int32
    for place, domain in enumerate(plan.sources):
        seen, times = np.unique(rows[:, place], return_counts=True)
        assert seen.tolist() == sorted(training_rows(data, split, domain).tolist())
        # 1200 draws, all rows equally likely: five standard deviations.
        p = 1 / len(seen)
        np.testing.assert_allclose(times / 1200, p, atol=5 * np.sqrt(p * (1 - p) / 1200))
    assert any(len(set(row)) < 4 for row in rows[:, 2].tolist()), "drawn with replacement"
    assert len({row.tobytes() for row in rows}) > 290, "every step draws anew"


def test_rows_are_the_same_in_every_version_and_on_every_device():
    plan = sampling.Plan(np.array([1000, 1000]), seeded_split([1000, 1000], 0), (0, 1), 3, 2, 3, 2)
    within = np.argsort(plan.split.order)[plan.rows()] - np.array([0, 1000])[None, :, None]
    assert within.tolist() == [[[124, 48, 742], [517, 583, 605]], [[307, 218, 68], [442, 488, 198]]]


@pytest.mark.slow
def test_a_program_on_the_device_draws_the_same_rows():
    data = make_data()
    plans = [sampling.Plan(data.counts, seeded_split(data.counts, seed), (3, 0, 1), seed, 2, 4, 5) for seed in range(2)]

    @jax.jit
    def all_runs(seeds, arrays):
        def one_run(seed, arrays):
            key = keys.run_key(seed, 2)
            one = lambda _, step: (None, sampling.draw_rows(keys.rows_key(keys.step_key(key, step)), *arrays, 4))
            return jax.lax.scan(one, None, jnp.arange(5, dtype=jnp.int32))[1]

        return jax.vmap(one_run)(seeds, arrays)

    arrays = jax.tree.map(lambda *x: jnp.stack(x), *(plan.arrays() for plan in plans))
    found = all_runs(jnp.arange(2, dtype=jnp.int32), arrays)
    np.testing.assert_array_equal(found, np.stack([plan.rows() for plan in plans]))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_grouped_batches_hold_the_examples_of_the_rows(dtype):
    data = make_data(dtype)
    stream = make_batches(data)
    rows = stream.plan.rows()
    given = list(stream)
    assert len(given) == len(stream) == 9
    for step, batch in enumerate(given):
        assert batch.x.dtype == dtype
        assert batch.y.dtype == batch.domain.dtype == np.int32
        np.testing.assert_array_equal(batch.x, data.inputs[rows[step]])
        np.testing.assert_array_equal(batch.y, data.labels[rows[step]])
        # Places among the sources, not indices of domains.
        np.testing.assert_array_equal(batch.domain, [[0] * 4, [1] * 4, [2] * 4])
        np.testing.assert_array_equal(np.array(stream.plan.sources)[batch.domain], data.domain_ids[rows[step]])


def test_flat_batches_are_the_grouped_ones_domain_after_domain():
    for grouped, flat in zip(make_batches(), make_batches(form="flat"), strict=True):
        assert flat.x.shape == (12, 2, 3)
        assert_same(flat, [x.reshape(12, *x.shape[2:]) for x in grouped])


@pytest.mark.parametrize("taken", [0, 4, 9])
def test_a_saved_state_is_followed_by_the_same_batches(taken):
    whole = list(make_batches())
    first = make_batches()
    for _ in range(taken):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = make_batches(steps=12)
    second.set_state(state)
    rest = list(second)
    assert len(rest) == 12 - taken
    for old, new in zip(whole[taken:], rest[: 9 - taken], strict=True):
        assert_same(old, new)


def test_going_back_repeats_and_looking_up_does_not_move():
    stream = make_batches()
    start = stream.get_state()
    first = [next(stream) for _ in range(3)]
    assert_same(stream[7], make_batches()[7])
    assert stream.get_state()["step"] == 3
    stream.set_state(start)
    for old in first:
        assert_same(old, next(stream))


def test_an_iteration_goes_on_where_it_stopped_and_ends_once():
    stream = make_batches()
    for _ in stream:
        break
    assert len(list(stream)) == 8
    assert list(stream) == []
    assert len(stream) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6},
        {"sources": (0, 1, 3)},
        {"sources": (3, 0)},
        {"target": 7},
        {"per_domain": 5},
        {"form": "flat"},
        {"split_seed": 1},
        {"data": make_data(np.uint8)},
        {"data": make_data(sizes=(6, 11, 5, 8))},
    ],
)
def test_a_state_of_other_batches_is_refused(change):
    stream = make_batches(**change)
    before = stream.get_state()
    with pytest.raises(InputError, match="belongs to other batches"):
        stream.set_state(make_batches().get_state())
    assert stream.get_state() == before


@pytest.mark.parametrize("step", [-1, 10, 1.0, True, None, "3"])
def test_a_state_at_a_step_that_does_not_exist_is_refused(step):
    stream = make_batches()
    with pytest.raises(InputError, match="these batches have 9 steps"):
        stream.set_state(stream.get_state() | {"step": step})


@pytest.mark.parametrize("state", [None, {}, {"step": 1}, {"next_index": 1}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(InputError, match="not a state of batches"):
        make_batches().set_state(state)


@pytest.mark.parametrize("step", [-1, 9])
def test_there_is_no_batch_of_a_step_out_of_range(step):
    with pytest.raises(IndexError, match=r"step must be in 0..8"):
        make_batches()[step]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "nested"}, "form must be one of grouped, flat"),
        ({"per_domain": 0}, "per_domain must be at least 1"),
        ({"steps": -1}, "steps and seed at least 0"),
        ({"seed": -1}, "steps and seed at least 0"),
        ({"sources": ()}, "different domains, at least one"),
        ({"sources": (1, 1)}, "different domains, at least one"),
        ({"sources": (0, 4)}, r"must be in 0\.\.3"),
        ({"target": 0}, "the target 0 is among the sources"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_batches(**change)


def test_a_split_of_other_data_or_without_training_examples_is_refused():
    data = make_data()
    with pytest.raises(ValueError, match="the split has 2 examples of 1 domains, the data 30 of 4"):
        b.MemoryBatches(data, Split(np.arange(2), np.array([1])), (0,), 0, 1, 2, 3)
    split = seeded_split(data.counts, 0)
    with pytest.raises(ValueError, match="domain 3 has no training example"):
        b.MemoryBatches(data, split._replace(train_counts=np.array([1, 1, 1, 0])), (0, 3), 0, 1, 2, 3)


def test_memory_batches_are_batches():
    with make_batches() as stream:
        assert isinstance(stream, b.Batches)
        assert_same(next(stream), make_batches()[0])
