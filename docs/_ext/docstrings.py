"""Where autodoc reads the library's docstrings and signatures otherwise than their readers do."""

import ast
import inspect
import re
import textwrap
from typing import Any

from flax import nnx
from sphinx.application import Sphinx
from sphinx.util.inspect import signature, stringify_signature

ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
ONE_LETTER = re.compile(r"^(\s+\w+: [A-Za-z])\.$")
# The modules of a type, as in jax.jaxlib._jax.Array; Sphinx links those of the library itself.
MODULES = re.compile(r"\b(?!disam_jax\.)(?:[a-z_]\w*\.)+(?=[A-Za-z])")
FIELD_TYPE = re.compile(r"^(\s*:vartype (\w+): )(.*)$")


class Named:
    """A default value that is shown by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def annotations_as_written(obj: Any) -> dict[str, str]:
    """The types of arguments, of fields and of the result ("return") by the names that the source gives them.

    At run time an alias such as `Params` is what it stands for, which tells a reader less.
    """
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, ast.expr | None] = {}
    if isinstance(node, ast.ClassDef):
        found = {
            each.target.id: each.annotation
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
    elif isinstance(node, ast.FunctionDef):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        found = {each.arg: each.annotation for each in every if each is not None} | {"return": node.returns}
    return {name: MODULES.sub("", ast.unparse(each)) for name, each in found.items() if each is not None}


def of_the_constructor(app: Sphinx, what: str, name: str, obj: Any, options: Any, text: str, returns: str) -> Any:
    """The arguments of a module's `__init__`; autodoc finds those of NNX's metaclass, which takes any."""
    del app, name, options, text
    if what != "class" or not inspect.isclass(obj) or not issubclass(obj, nnx.Module):
        return None
    return stringify_signature(signature(obj.__init__, bound_method=True), unqualified_typehints=True), returns


def types_as_written(app: Sphinx, what: str, name: str, obj: Any, options: Any, text: str, returns: str) -> Any:
    """A signature with the names of its types; no arguments for a protocol, which nobody constructs."""
    del app, name, options
    if getattr(obj, "_is_protocol", False):
        return "", None
    if text is None or not re.search(r"\bAny\b|<function", f"{text} {returns}"):
        return None
    written = annotations_as_written(obj.__init__ if inspect.isclass(obj) and issubclass(obj, nnx.Module) else obj)
    try:
        shown = signature(obj, bound_method=what == "method" and not isinstance(obj, staticmethod))
    except (TypeError, ValueError):
        return None
    arguments = [
        each.replace(
            annotation=written.get(each.name, each.annotation),
            default=Named(each.default.__name__) if inspect.isfunction(each.default) else each.default,
        )
        for each in shown.parameters.values()
    ]
    result = shown.return_annotation if inspect.isclass(obj) else written.get("return", shown.return_annotation)
    shown = shown.replace(parameters=arguments, return_annotation=result)
    text, arrow, returns = stringify_signature(shown, unqualified_typehints=True).partition(" -> ")
    return text, returns if arrow else None


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


def field_types_as_written(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The types of a class's fields without their modules, and as its source names them where that says more."""
    del app, name, options
    written = annotations_as_written(obj) if what == "class" else {}
    for at, line in enumerate(lines):
        found = FIELD_TYPE.match(line)
        if found:
            shown = MODULES.sub("", found[3])
            lines[at] = found[1] + (written.get(found[2], shown) if re.search(r"\bAny\b", shown) else shown)


def fields_are_listed_once(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """A field of a named tuple stands among the attributes of its class."""
    del app, what, name, skip, options
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to autodoc, before and after napoleon reads the docstring."""
    app.connect("autodoc-process-signature", of_the_constructor)
    app.connect("autodoc-process-signature", types_as_written, priority=400)
    app.connect("autodoc-process-signature", aliases_are_names, priority=600)
    app.connect("autodoc-process-docstring", letters_are_no_lists, priority=400)
    app.connect("autodoc-process-docstring", field_types_as_written, priority=800)
    app.connect("autodoc-skip-member", fields_are_listed_once)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
