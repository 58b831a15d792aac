"""What ``import disam_jax`` brings in, and what it costs on top of optax."""

import subprocess
import sys

OPTIONAL = ("chex", "flax", "grain", "matplotlib", "PIL", "rich", "scipy", "skimage", "sklearn", "tyro", "orbax")


def python(code):
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.strip()


def test_nothing_optional_is_imported():
    code = "import optax, sys; before = set(sys.modules); import disam_jax; print(*(set(sys.modules) - before))"
    roots = {name.split(".")[0] for name in python(code).split()}
    assert "disam_jax" in roots
    assert roots.isdisjoint(OPTIONAL), roots & set(OPTIONAL)


def test_import_takes_under_a_tenth_of_a_second_on_top_of_optax():
    code = "import optax, time; t = time.perf_counter(); import disam_jax; print(time.perf_counter() - t)"
    # The minimum: other work on the machine only ever adds.
    assert min(float(python(code)) for _ in range(3)) < 0.1


def test_public_names():
    names = python("import disam_jax; print(*sorted(disam_jax.__all__))").split()
    values = {"DisamInfo", "DisamState", "DomainLosses", "variants"}
    transforms = {"disam", "sam", "value_and_grad", "accumulated_value_and_grad"}
    domains = {"domain_weights", "group_by_domain", "mean_by_domain", "per_domain", "per_domain_value_and_grad"}
    assert set(names) == values | transforms | domains
