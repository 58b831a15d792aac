"""Every public name has its place in the API pages: one that is missing is a warning, and so an error of the build."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

# Modules that the sweeps are made of and nobody calls: found by reading them, not by their pages.
INTERNAL_MODULES = {
    "disam_jax.dg.cli",
    "disam_jax.dg.data.array_cache",
    "disam_jax.dg.data.images",
    "disam_jax.dg.data.names",
    "disam_jax.dg.data.npz",
    "disam_jax.dg.data.sources.checkout",
    "disam_jax.dg.data.sources.convert",
    "disam_jax.dg.data.streaming",
    "disam_jax.dg.data.walk",
    # Their public names are those of the package.
    "disam_jax.dg.methods.sam_family",
    "disam_jax.dg.methods.sharpness_aware",
    "disam_jax.dg.models.conv",
    "disam_jax.dg.models.depthwise",
    "disam_jax.dg.models.entries",
    "disam_jax.dg.models.norm",
    "disam_jax.dg.models.recompute",
    "disam_jax.dg.models.transformer",
    "disam_jax.dg.pretrained.legacy_pickle",
    "disam_jax.dg.pretrained.packages",
    "disam_jax.dg.progress",
    "disam_jax.dg.ranges",
    "disam_jax.dg.reading",
    "disam_jax.dg.report.formats",
    "disam_jax.dg.report.html_page",
    "disam_jax.dg.report.metric_figures",
    "disam_jax.dg.report.metric_summary",
    "disam_jax.dg.report.metric_tables",
    "disam_jax.dg.report.sensitivity",
    "disam_jax.dg.report.tables",
    "disam_jax.dg.runners",
    "disam_jax.dg.saving",
    "disam_jax.dg.sweep.beforehand",
    "disam_jax.dg.sweep.cluster",
    "disam_jax.dg.sweep.lock",
    "disam_jax.dg.sweep.logits_files",
    "disam_jax.dg.sweep.merge",
    "disam_jax.dg.sweep.models",
    "disam_jax.dg.sweep.results_file",
    "disam_jax.dg.sweep.results_folder",
    "disam_jax.dg.sweep.schema",
    "disam_jax.dg.sweep.shards",
    "disam_jax.dg.training.step",
    "disam_jax.dg.unfinished",
}
# Public by name, for the other modules of the library only.
INTERNAL_NAMES = {"disam_jax.dg.methods.method_gradient", "disam_jax.variants.as_variant"}


def modules(name: str = "disam_jax") -> Iterator[ModuleType]:
    """The module and all public ones below it; below a package with `__all__`, those that it names."""
    module = importlib.import_module(name)
    yield module
    listed = None if name == "disam_jax" else getattr(module, "__all__", None)
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        below = f"{name}.{info.name}"
        if not info.name.startswith("_") and below not in INTERNAL_MODULES and (listed is None or info.name in listed):
            yield from modules(below)


def public_names(module: ModuleType) -> list[str]:
    """`__all__`, or else the functions and classes that the module defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return [name for name in listed if not inspect.ismodule(getattr(module, name))]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def missing(documented: set[str]) -> list[str]:
    """Public names without an entry in the API pages, as `module.name`."""
    wanted = {f"{module.__name__}.{name}" for module in modules() for name in public_names(module)}
    return sorted(wanted - documented - INTERNAL_NAMES)


def check(app: Sphinx, env: Any) -> None:
    """Warns of each name that is missing."""
    del app
    for name in missing(set(env.get_domain("py").objects)):
        logging.getLogger(__name__).warning(
            "%s is public and not in docs/api: add it there, or name its module in docs/_ext/api_coverage.py", name
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
