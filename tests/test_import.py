"""What ``import disam_jax`` brings in, and what it costs on top of optax."""

import subprocess
import sys

import pytest

import disam_jax

OPTIONAL = (
    *("chex", "flax", "grain", "matfree", "matplotlib", "orbax", "PIL", "rich", "safetensors", "scipy", "skimage"),
    *("sklearn", "tokenizers", "tyro"),
)


def python(code):
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.strip()


def test_nothing_optional_is_imported():
    code = "import optax, sys; before = set(sys.modules); import disam_jax; print(*(set(sys.modules) - before))"
    roots = {name.split(".")[0] for name in python(code).split()}
    assert "disam_jax" in roots
    assert roots.isdisjoint(OPTIONAL), roots & set(OPTIONAL)


@pytest.mark.slow
@pytest.mark.rest
def test_import_takes_under_a_tenth_of_a_second_on_top_of_optax():
    code = "import optax, time; t = time.process_time(); import disam_jax; print(time.process_time() - t)"
    # The second try is for a machine with other work, which only ever adds.
    assert any(float(python(code)) < 0.1 for _ in range(2))


@pytest.mark.slow
def test_nnx_is_imported_when_it_is_asked_for():
    code = "import disam_jax, sys; a = 'flax' in sys.modules; print(a, disam_jax.nnx.value_and_grad.__name__)"
    assert python(code) == "False value_and_grad"


@pytest.mark.slow
def test_without_flax_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['flax'] = None; import disam_jax\n"
        "try: disam_jax.nnx\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert python(code) == 'disam_jax.nnx needs Flax: pip install "disam-jax[flax]"'


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert not hasattr(disam_jax, "nothing")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ascent_part", "ascent_subset"),
        ("part_and_rest", "split_examples"),
        ("part_value_and_grad", "subset_value_and_grad"),
    ],
)
def test_an_old_name_is_the_new_function_with_a_warning_that_names_it(old, new):
    with pytest.warns(DeprecationWarning, match=rf"disam_jax\.{old} is now disam_jax\.{new}\.") as caught:
        found = getattr(disam_jax, old)
    assert found is getattr(disam_jax, new)
    assert caught[0].filename == __file__
    assert old not in disam_jax.__all__


def test_public_names():
    values = {"DisamInfo", "DisamState", "DomainLosses", "variants"}
    transforms = {"disam", "sam", "value_and_grad", "accumulated_value_and_grad"}
    subsets = {"ascent_subset", "split_examples", "subset_value_and_grad", "training_cost"}
    domains = {"domain_weights", "group_by_domain", "mean_by_domain", "per_domain", "per_domain_value_and_grad"}
    assert set(disam_jax.__all__) == values | transforms | domains | subsets
