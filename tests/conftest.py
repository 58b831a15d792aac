"""Strict mode for every test: several simulated devices, strict promotion, NaN debugging, warnings as errors."""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile

# Read once, when jax starts; the sharding tests need more than one device and the others don't mind.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Compiling takes most of the time, and the processes of a run compile the same small programs: one cache for all of
# them, which the others inherit from the first, and for this run alone.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.mkdtemp(prefix="compiled_")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import jax
import pytest
from support import enable_x64

# What LLVM does for speed changes no property that is tested here. The processes that tests start have it, and so has a
# run with JAX_DISABLE_MOST_OPTIMIZATIONS=0.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)

hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("fixed")

# Programs that the processes of a test run, not tests.
collect_ignore = ["checkpoint_worker.py", "mutation", "two_processes.py"]
# Nor is there a doctest in a conftest; several of one name could not be collected side by side.
collect_ignore_glob = ["*/conftest.py"]


@pytest.fixture(autouse=True)
def _strict():
    """No implicit promotion of ranks or dtypes, and an error at the first NaN."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        yield


MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 30_000


@pytest.fixture(autouse=True)
def _compiled_programs_are_let_go():
    """Every compiled program is mapped into memory, and Linux ends a process with more than 65530 mappings."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
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
