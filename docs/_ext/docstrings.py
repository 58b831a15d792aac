"""Where autodoc reads the library's docstrings and signatures otherwise than their readers do."""

import inspect
import re
from typing import Any

from flax import nnx
from sphinx.application import Sphinx
from sphinx.util.inspect import signature, stringify_signature

ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
ONE_LETTER = re.compile(r"^(\s+\w+: [A-Za-z])\.$")


def of_the_constructor(app: Sphinx, what: str, name: str, obj: Any, options: Any, text: str, returns: str) -> Any:
    """The arguments of a module's `__init__`; autodoc finds those of NNX's metaclass, which takes any."""
    del app, name, options, text
    if what != "class" or not inspect.isclass(obj) or not issubclass(obj, nnx.Module):
        return None
    return stringify_signature(signature(obj.__init__, bound_method=True), unqualified_typehints=True), returns


def aliases_are_names(app: Sphinx, what: str, name: str, obj: Any, options: Any, text: str, returns: str) -> Any:
    """A type of `autodoc_type_aliases` is its name, in a union too, where Sphinx writes its own class around it."""
    del app, what, name, obj, options
    if not ALIAS.search(f"{text} {returns}"):
        return None
    return ALIAS.sub(r"\1", text), returns and ALIAS.sub(r"\1", returns)


def letters_are_no_lists(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """An argument that is described by the letter of its size, `num_classes: C.`, does not begin a list."""
    del app, what, name, obj, options
    lines[:] = [ONE_LETTER.sub(r"\1\\.", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to autodoc, before napoleon reads the docstring."""
    app.connect("autodoc-process-signature", of_the_constructor)
    app.connect("autodoc-process-signature", aliases_are_names, priority=600)
    app.connect("autodoc-process-docstring", letters_are_no_lists, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
