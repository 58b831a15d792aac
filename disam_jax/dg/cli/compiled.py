"""Compiled programs are kept on disk, so that a sweep that goes on need not compile them again."""

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

from disam_jax.dg.reading import reason, shown

# Of jax, which reads them in each new process.
FOLDER = "JAX_COMPILATION_CACHE_DIR"
# By default jax keeps only what took a second to compile.
EVERYTHING = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def keep_programs(keep: bool, say: Callable[[str], None]) -> None:
    """Lets jax keep what it compiles, here and in processes that this one starts; to call before anything is compiled.

    A folder that the user gave to jax, by the variable JAX_COMPILATION_CACHE_DIR or in its configuration, is used as it
    is. Otherwise it is one in the user's folder for caches.

    Args:
        keep: Whether to; if not, also a folder of the user is left alone.
        say: Called with a line where the folder cannot be written to. Everything is compiled then.
    """
    import jax

    if not keep:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    folder = programs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
    except OSError as error:
        say(f"compiled programs are not kept, since {shown(folder)} cannot be written to: {reason(error)}")
        return
    os.environ[FOLDER] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in EVERYTHING.items():
        if name not in os.environ:
            os.environ[name] = value
            jax.config.update(name.lower(), int(value))


def programs_folder() -> Path:
    """Where programs are kept: a folder for each kind of processor, since another one may not run them.

    Example:
        >>> programs_folder().parent.name
        'programs'
    """
    from disam_jax.dg.data.array_cache import cache_folder

    return cache_folder() / "programs" / hashlib.sha256(_processor().encode()).hexdigest()[:12]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # What it can do, by the name that Linux gives it on x86 and on ARM.
    able = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.system()} {platform.machine()} {able}"
