"""Strict mode for every test: several simulated devices, strict promotion, NaN debugging, warnings as errors."""

import atexit
import gc
import importlib.metadata
import itertools
import os
import pathlib
import shutil
import tempfile

# Read once, when jax starts; the sharding tests need more than one device and the others don't mind.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A test compiles many programs and runs each once, so what XLA and LLVM do to make a program fast costs more than it
# saves, and changes no property that is tested here. With JAX_DISABLE_MOST_OPTIMIZATIONS=0, programs are compiled as
# users compile them; CI does so on the newest versions.
QUICK_TO_COMPILE = "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ
if QUICK_TO_COMPILE:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # A flag that XLA does not know ends the process, and later versions have nothing but the fusion emitters.
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Compiling takes most of the time, and the processes of a run compile the same small programs: one cache for all of
# them, which the others inherit from the first, and for this run alone.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.mkdtemp(prefix="compiled_")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Where each operation of a program came from is of no interest in a program that runs once.
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")
# Tracing makes many objects and few cycles.
gc.set_threshold(100_000, 50, 100)

import hypothesis
import jax
import pytest
from dealing import deal
from support import enable_x64

if QUICK_TO_COMPILE:
    jax.config.update("jax_disable_most_optimizations", True)

hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("fixed")

# Programs, and what several tests share.
collect_ignore = ["mutation", "support"]


# The core's docstrings have quick examples; those of the folders in it compile larger programs.
CORE = pathlib.Path(__file__).parents[1] / "disam_jax"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what is slow, before pytest leaves it out."""
    deal(items)
    for item in items:
        if CORE in item.path.parents[1:]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _strict():
    """No implicit promotion of ranks or dtypes, and an error at the first NaN."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        yield


MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 30_000
_tests_done = itertools.count(1)


@pytest.fixture(autouse=True)
def _compiled_programs_are_let_go():
    """Every compiled program is mapped into memory, and Linux ends a process with more than 65530 mappings.

    A long list takes a while to read, so one test in ten does.
    """
    yield
    if next(_tests_done) % 10 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def nans_allowed():
    """For tests in which a NaN is the point."""
    with jax.debug_nans(False):
        yield


@pytest.fixture
def x64():
    """float64 in jax, for this test only."""
    with enable_x64(True):
        yield
