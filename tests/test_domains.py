"""From batches to domain losses: grouped, flat, on the host."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import problems
import pytest

import disam_jax

pytestmark = pytest.mark.dealt


def test_per_domain_is_the_loss_of_each_domain_alone():
    problem = problems.make_problem(seed=1)
    got = disam_jax.per_domain(problems.loss)(problem.params, problem.batch)
    want = problems.reference(problem).losses_at(problems.flatten(problem.params))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_per_domain_value_and_grad_against_the_reference():
    problem = problems.make_problem(seed=2)
    losses, grads = disam_jax.per_domain_value_and_grad(problems.loss)(problem.params, problem.batch)
    reference, w = problems.reference(problem), problems.flatten(problem.params)
    np.testing.assert_allclose(losses, reference.losses_at(w), rtol=1e-5)
    for i, want in enumerate(reference.gradients_at(w)):
        np.testing.assert_allclose(problems.flatten(jax.tree.map(lambda g, i=i: g[i], grads)), want, atol=1e-6)


@pytest.mark.parametrize(
    ("in_axes", "arrange"),
    [
        ((None, 0), lambda p, x: (p, x)),
        ((0, None), lambda p, x: (x, p)),
        ((None, 1), lambda p, x: (p, jnp.swapaxes(x, 0, 1))),
    ],
)
def test_in_axes_says_where_the_domains_are(in_axes, arrange):
    x = jnp.arange(24.0).reshape(3, 4, 2)
    swap = in_axes[0] == 0
    loss = (lambda x, p: jnp.mean(x @ p)) if swap else (lambda p, x: jnp.mean(x @ p))
    losses = disam_jax.per_domain(loss, in_axes=in_axes)(*arrange(jnp.ones(2), x))
    np.testing.assert_allclose(losses, x.sum(-1).mean(-1))


@pytest.mark.parametrize("in_axes", [(None,), (None, 0, 0)])
def test_as_many_axes_as_arguments_or_the_error_is_that_of_vmap(in_axes):
    with pytest.raises(ValueError, match="vmap in_axes must be"):
        disam_jax.per_domain(lambda w, x: w * x.mean(), in_axes=in_axes)(jnp.ones(()), jnp.ones((3, 4)))


def test_mean_by_domain_keeps_a_nan_in_its_domain(nans_allowed):
    out = disam_jax.mean_by_domain(jnp.array([1.0, np.nan, 5.0]), jnp.array([0, 1, 2]), 3)
    np.testing.assert_array_equal(out.values, [1.0, np.nan, 5.0])


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("ids", [[0, 1, 3], [0, -1, 2]])
def test_an_id_out_of_range_that_only_the_device_sees_makes_everything_nan(ids):
    losses = jnp.array([1.0, 2.0, 3.0])
    value = jax.jit(lambda ids: disam_jax.mean_by_domain(losses, ids, 3).values)(jnp.array(ids))
    assert np.isnan(value).all()

    def step(w, ids):
        return disam_jax.value_and_grad(lambda w: disam_jax.mean_by_domain(w * losses, ids, 3), 0.1, 0.5)(w)

    loss, gradient = jax.jit(step)(jnp.ones(3), jnp.array(ids))
    assert np.isnan(loss)
    assert np.isnan(gradient[0])  # that of the first example, whose own id is fine


INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ml_dtypes.int4]


def many_domains(dtype):
    """Ids up to the largest of the dtype or 299, whichever is less."""
    highest = min(int(jnp.iinfo(dtype).max), 299)
    return np.arange(highest + 1, dtype=np.int64) % (highest + 1)


@pytest.mark.parametrize("num_domains", ["as many as ids", 300, 70_000])
@pytest.mark.parametrize("where", ["host", "list", "device", "jit"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: np.dtype(dtype).name)
def test_ids_of_any_integer_dtype_are_as_int32(dtype, where, num_domains):
    if num_domains == 70_000 and not (where == "jit" and dtype in (np.uint8, np.int16)):
        pytest.skip("large, and as 300")
    highest = len(many_domains(dtype)) - 1
    plain = np.resize(many_domains(dtype), 300)  # as many examples for each dtype
    m = highest + 1 if num_domains == "as many as ids" else num_domains
    losses = plain.astype(np.float32)  # an example that went to another domain would change its mean
    ids = {"host": plain.astype(dtype), "list": plain.tolist()}.get(where)
    ids = jnp.asarray(plain, dtype) if ids is None and jnp.iinfo(dtype).bits <= 32 else plain.astype(dtype)
    fn = lambda ids: disam_jax.mean_by_domain(losses, ids, m)
    out = (jax.jit(fn) if where == "jit" else fn)(ids)
    np.testing.assert_array_equal(out.weights, np.bincount(plain, minlength=m))
    np.testing.assert_array_equal(out.values, np.where(np.arange(m) <= highest, np.arange(m), 0))


def test_a_list_of_traced_ids_is_as_an_array():
    losses = np.arange(4, dtype=np.float32)
    fn = lambda ids: disam_jax.mean_by_domain(losses, ids, 3)
    out = jax.jit(fn)([0, 2, 2, 0])
    assert (out.values.tolist(), out.weights.tolist()) == ([1.5, 0.0, 1.5], [2.0, 0.0, 2.0])


@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize(
    ("dtype", "wrong", "num_domains"),
    [(np.uint8, 3, 3), (np.uint8, 255, 255), (np.int8, -1, 200), (np.int16, -1, 3), (np.uint32, 2**32 - 1, 3)],
)
def test_an_id_out_of_range_is_never_dropped_whatever_its_dtype(dtype, wrong, num_domains):
    ids = np.array([0, 1, wrong], dtype)
    value = jax.jit(lambda ids: disam_jax.mean_by_domain(jnp.ones(3), ids, num_domains).values)(ids)
    assert np.isnan(value).all()
    for call in (
        lambda: disam_jax.mean_by_domain(jnp.ones(3), ids, num_domains),
        lambda: disam_jax.group_by_domain(ids, ids, num_domains),
    ):
        with pytest.raises(ValueError, match="domain_ids must be in"):
            call()


def test_wide_ids_that_would_wrap_around_are_out_of_range(x64, nans_allowed):
    ids = jnp.array([0, 1, 2**32 + 2])
    assert ids.dtype == jnp.int64
    assert np.isnan(jax.jit(lambda ids: disam_jax.mean_by_domain(jnp.ones(3), ids, 3).values)(ids)).all()


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: np.dtype(dtype).name)
def test_grouping_takes_ids_of_any_integer_dtype(dtype):
    plain = many_domains(dtype)
    x = np.arange(len(plain))[::-1]
    for ids in (plain.astype(dtype), plain.tolist()):
        np.testing.assert_array_equal(disam_jax.group_by_domain(x, ids, len(plain))[:, 0], x)
    with pytest.raises(ValueError, match="ragged"):
        disam_jax.group_by_domain(x, plain.astype(dtype), 300 if len(plain) < 300 else 301)


@pytest.mark.slow
@pytest.mark.rest
def test_keyword_arguments_are_passed_to_every_domain_as_they_are():
    x = jnp.arange(6.0).reshape(3, 2)
    scale = jnp.array([1.0, 2.0, 3.0])  # as long as there are domains, and not one for each

    def loss(w, x, *, train, reduction, scale):
        assert train is True
        assert scale.shape == (3,)
        return getattr(jnp, reduction)(w * x) * scale[1]

    given = {"train": True, "reduction": "sum", "scale": scale}
    want = jnp.sum(x, axis=1) * 2
    np.testing.assert_array_equal(disam_jax.per_domain(loss)(1.0, x, **given), want)
    values, grads = disam_jax.per_domain_value_and_grad(loss)(1.0, x, **given)
    np.testing.assert_array_equal(values, want)
    np.testing.assert_array_equal(grads, want)
    value, _ = disam_jax.value_and_grad(disam_jax.per_domain(loss))(1.0, x, **given)
    np.testing.assert_allclose(value, jnp.mean(want), rtol=1e-6)
    value, _ = disam_jax.accumulated_value_and_grad(loss)(1.0, x, **given)
    np.testing.assert_allclose(value, jnp.mean(want), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_losses_are_summed_in_float32(dtype):
    losses = jnp.ones(5000, dtype)  # 5000 ones sum to 256 in bfloat16 and to 2048 in float16
    out = disam_jax.mean_by_domain(losses, jnp.zeros(5000, jnp.int32), 1)
    assert out.values.dtype == jnp.float32
    assert out.values.tolist() == [1.0]


@pytest.mark.slow
@pytest.mark.rest
def test_the_gradient_of_the_mean_loss_of_a_flat_batch_is_that_of_the_mean_over_examples():
    problem = problems.make_problem(seed=3)
    flat = problem.flat
    ids = np.array([0, 2] * 12, np.int32)
    losses = lambda p: disam_jax.mean_by_domain(problems.example_losses(p, flat), ids, 3)
    _, got = disam_jax.value_and_grad(losses, 0.0, 0.0)(problem.params)
    want = jax.grad(lambda p: jnp.mean(problems.example_losses(p, flat)))(problem.params)
    assert problems.relative_error(got, want) < 1e-6


def test_group_by_domain_keeps_the_order_and_the_pairs():
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.repeat(np.arange(3), 4))
    batch = {"x": rng.normal(size=(12, 2)), "id": ids, "n": np.arange(12)}
    got = disam_jax.group_by_domain(batch, ids, 3)
    assert got["x"].shape == (3, 4, 2)
    for i in range(3):
        assert (got["id"][i] == i).all()
        assert (np.diff(got["n"][i]) > 0).all()
        np.testing.assert_array_equal(got["x"][i], batch["x"][ids == i])


@pytest.mark.parametrize("shape", [(), (2, 2), (4, 1)])
def test_group_by_domain_wants_one_id_for_each_example(shape):
    with pytest.raises(ValueError, match=r"domain_ids must be \[N\], got \("):
        disam_jax.group_by_domain(np.arange(4), np.zeros(shape, np.int32), 1)


def test_group_by_domain_takes_the_first_or_draws():
    ids = np.array([0, 0, 0, 1, 1])
    n = np.arange(5)
    assert disam_jax.group_by_domain(n, ids, 2, per_domain=2).tolist() == [[0, 1], [3, 4]]
    drawn = disam_jax.group_by_domain(n, ids, 2, per_domain=2, rng=np.random.default_rng(1))
    again = disam_jax.group_by_domain(n, ids, 2, per_domain=2, rng=np.random.default_rng(1))
    assert drawn.tolist() == again.tolist()
    assert set(drawn[0]) <= {0, 1, 2}
    assert len(set(drawn[0])) == 2
    draws = [disam_jax.group_by_domain(n, ids, 2, per_domain=2, rng=np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(sorted(each[0].tolist())) for each in draws} == {(0, 1), (0, 2), (1, 2)}
    repeated = disam_jax.group_by_domain(n, ids, 2, per_domain=3, replace=True)
    assert repeated.tolist() == [[0, 1, 2], [3, 4, 3]]
    filled = disam_jax.group_by_domain(n, ids, 2, per_domain=3, replace=True, rng=np.random.default_rng(2))
    assert sorted(filled[0]) == [0, 1, 2]
    assert set(filled[1]) <= {3, 4}
