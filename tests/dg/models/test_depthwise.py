"""Depthwise convolution as a sum of shifted products, against XLA's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from disam_jax.dg.models.depthwise import depthwise_convolution, same_padding, shifted_products

pytestmark = pytest.mark.dealt

SIZES = [(7, 8), (2, 3)]


def plain(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def example(size, kernel, dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, *size, 4)).astype(dtype), rng.normal(size=(*kernel, 4)).astype(dtype)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 1), (2, 3)])
def test_values_and_gradients_are_those_of_the_plain_convolution(x64, kernel, stride):
    def everything(fn, x, k, padding, g):
        y, pull = jax.vjp(lambda x, k: fn(x, k, stride, padding), x, k)
        return y, *pull(g)

    for size in SIZES:
        x, k = example(size, kernel)
        padding = same_padding(size, kernel, stride)
        g = np.random.default_rng(1).normal(size=(2, *(-(-n // stride) for n in size), 4))
        ours = jax.jit(everything, static_argnums=(0, 3))(shifted_products, x, k, padding, g)
        theirs = jax.jit(everything, static_argnums=(0, 3))(plain, x, k, padding, g)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((3, 0), (0, 4)), ((1, 2), (2, 1))])
def test_any_padding(x64, padding):
    x, k = example((7, 8), (3, 3))
    of = lambda fn: jax.jit(lambda x, k: jax.grad(lambda x, k: jnp.sum(fn(x, k, 2, padding) ** 2), (0, 1))(x, k))(x, k)
    for a, b in zip(of(shifted_products), of(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [(4, 5), (5, 4), (12, 13)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_what_xla_calls_same(size, kernel, stride):
    padding = same_padding(size, (kernel, kernel), stride)
    assert list(padding) == jax.lax.padtype_to_pads(size, (kernel, kernel), (stride, stride), "SAME")


def test_half_precision_sums_its_kernels_gradient_in_float32():
    """4,096 times 1 times 1 is exact; in bfloat16 a running sum would stop at 256."""
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    grad = jax.jit(jax.grad(lambda k: jnp.sum(shifted_products(x, k, 1, ((0, 0), (0, 0))).astype(jnp.float32))))
    found = grad(jnp.ones((1, 1, 1), jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert float(found[0, 0, 0]) == 4096


def test_runs_side_by_side_have_kernels_of_their_own(x64):
    x, k = example((6, 6), (3, 3))
    kernels = np.stack([k, 2 * k, -k])
    one = lambda k: jax.grad(lambda k: jnp.sum(shifted_products(x, k, 2, ((0, 1), (0, 1))) ** 2))(k)
    of_all = jax.jit(jax.vmap(one))(kernels)
    np.testing.assert_allclose(of_all, np.stack([jax.jit(one)(k) for k in kernels]), rtol=1e-12)


def test_a_flax_convolution_takes_it():
    make = lambda **options: nnx.Conv(
        4, 4, (3, 3), strides=2, padding=1, feature_group_count=4, rngs=nnx.Rngs(0), **options
    )
    layer, own = make(conv_general_dilated=depthwise_convolution), make()
    x = example((7, 8), (3, 3), np.float32)[0]
    np.testing.assert_allclose(nnx.jit(layer)(x), nnx.jit(own)(x), rtol=1e-5, atol=1e-5)
