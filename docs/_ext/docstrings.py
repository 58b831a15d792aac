"""Where autodoc reads the library's docstrings and signatures otherwise than their readers do."""

import ast
import inspect
import re
import textwrap
from typing import Any

from docutils import nodes
from flax import nnx
from sphinx.application import Sphinx
from sphinx.util.inspect import signature, stringify_signature

ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
ONE_LETTER = re.compile(r"^(\s+\w+: [A-Za-z])\.$")
# The modules of a type, as in jax.jaxlib._jax.Array; Sphinx links those of the library itself.
MODULES = re.compile(r"\b(?!disam_jax\.)(?:[a-z_]\w*\.)+(?=[A-Za-z])")
FIELD_TYPE = re.compile(r"^(\s*:vartype (\w+): )(.*)$")


class Named:
    """A default value that has no code to show: a function by its name, a fresh container as an ellipsis."""

    def __init__(self, value: Any) -> None:
        self.name = value.__name__ if inspect.isfunction(value) else "..."

    def __repr__(self) -> str:
        return self.name


def with_a_name(default: Any) -> Any:
    """The default value of an argument, as code that can be shown."""
    hidden = default is not inspect.Parameter.empty and repr(default).startswith("<")
    return Named(default) if hidden else default


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


def types_as_written(app: Sphinx, what: str, name: str, obj: Any, options: Any, text: str, returns: str) -> Any:
    """A signature with the names of its types; no arguments for a protocol, which nobody constructs.

    The arguments of an NNX module are those of its `__init__`; autodoc finds those of its metaclass, which takes any.
    """
    del app, name, options
    if getattr(obj, "_is_protocol", False):
        return "", None
    if text is None or not re.search(r"\bAny\b|= <", f"{text} {returns}"):
        return None
    is_module = inspect.isclass(obj) and issubclass(obj, nnx.Module)
    called = obj.__init__ if is_module else obj
    written = annotations_as_written(called)
    try:
        shown = signature(called, bound_method=is_module or what == "method")
    except (TypeError, ValueError):
        return None
    arguments = [
        each.replace(annotation=written.get(each.name, each.annotation), default=with_a_name(each.default))
        for each in shown.parameters.values()
    ]
    result = inspect.Signature.empty if inspect.isclass(obj) else written.get("return", shown.return_annotation)
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


def dashes(app: Sphinx, doctree: nodes.document) -> None:
    """The two hyphens that Sphinx sets between an argument and its description are a dash."""
    del app
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def fields_are_listed_once(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """A field of a named tuple stands among the attributes of its class."""
    del app, what, name, skip, options
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to autodoc, before and after napoleon reads the docstring."""
    app.connect("autodoc-process-signature", types_as_written)
    app.connect("autodoc-process-signature", aliases_are_names, priority=600)
    app.connect("autodoc-process-docstring", letters_are_no_lists, priority=400)
    app.connect("autodoc-process-docstring", field_types_as_written, priority=800)
    app.connect("autodoc-skip-member", fields_are_listed_once)
    app.connect("doctree-read", dashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
