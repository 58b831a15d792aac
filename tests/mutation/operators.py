"""The mutants of a module: copies of its source with one small change of meaning.

Docstrings, messages, annotations and what only feeds a message are left alone.
"""

import ast
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    """One changed copy of a module.

    Attributes:
      module: Name of the module in the package, such as `_weights`.
      function: Qualified name of the function that holds the change.
      operator: Kind of the change.
      line: Line number of the change in the original source.
      before: The changed lines as they were, without indentation.
      after: The same lines as they are in the mutant.
      source: Source of the whole mutated module.
    """

    module: str
    function: str
    operator: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What identifies the mutant while other lines of the module change."""
        return self.module, self.function, self.before, self.after


class Change(NamedTuple):
    node: ast.AST
    replacement: str
    operator: str
    function: str


COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# Text is not changed at random: only a choice into another valid one.
CHOICES = {"ascent": "clean", "clean": "ascent", "variance": "std", "std": "variance", "weighted_variance": "variance"}
TWINS = {
    "any": "all",
    "min": "max",
    "minimum": "maximum",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "psum": "pmean",
    "ceil": "floor",
    "ascent_gradient": "mean_gradient",
}
TWINS |= {after: before for before, after in TWINS.items()}
# Calls of which the first argument alone may be left, and methods of which the object alone may be left.
WRAPPERS = {"stop_gradient", "asarray", "abs", "sqrt", "square", "round", "max", "bool", "int"}
WRAPPERS |= {"cast", "like", "scalar", "not_negative"}
METHODS = {"astype", "reshape", "_replace"}
# Keywords whose absence changes the meaning; those that only hand a value on are recognised by its name.
KEYWORDS = {"where", "initial", "start", "precision", "keepdims", "is_leaf", "axis", "dtype", "copy"}
# To exchange the arguments of these is an error at once.
NOT_SWAPPED = {"isinstance", "getattr", "hasattr", "setattr", "zip"}


def mutants(source: str, module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    text = source.encode()
    found: dict[tuple, Mutant] = {}
    for change in _changes(ast.parse(source), ""):
        node: Any = change.node
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        first, last = starts[node.lineno - 1], starts[node.end_lineno]
        before, after = text[first:last], text[first:begin] + change.replacement.encode() + text[end:last]
        mutant = Mutant(
            module,
            change.function,
            change.operator,
            node.lineno,
            _one_line(before.decode()),
            _one_line(after.decode()),
            (text[:first] + after + text[last:]).decode(),
        )
        if mutant.before != mutant.after:
            found.setdefault(mutant.key, mutant)
    return sorted(found.values(), key=lambda each: (each.line, each.operator, each.after))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _changes(node: ast.AST, function: str) -> Iterator[Change]:
    """Of a node and of all below it."""
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        if isinstance(node, ast.FunctionDef):
            function = f"{function}.{node.name}" if function else node.name
        for default in [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
            yield from _of_default(default, function)
        for each in node.body if isinstance(node, ast.FunctionDef) else [node.body]:
            yield from _changes(each, function)
        return
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for each in node.body:
            if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
                yield from _changes(each, function)
        return
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.ExceptHandler)) or _is_docstring(node):
        return
    for operator, replacement in _of_node(node):
        text = _text(replacement)
        # A method may be called on what a select leaves.
        yield Change(node, f"({text})" if operator == "select" and text[0].isdigit() else text, operator, function)
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            handed_on = isinstance(keyword.value, ast.Name) and keyword.value.id == keyword.arg
            if handed_on or keyword.arg in KEYWORDS:
                # Nothing, in a form that may stand anywhere among the keywords.
                yield Change(keyword, "**{}", "argument dropped", function)
    if isinstance(node, ast.If):
        yield from _of_if(node, function)
        return
    if isinstance(node, ast.AnnAssign):
        below = [node.value] if node.value is not None else []
    elif isinstance(node, ast.Call):
        strict = isinstance(node.func, ast.Name) and node.func.id == "zip"
        below = [node.func, *node.args, *(k.value for k in node.keywords if not (strict and k.arg == "strict"))]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        below = []  # -1 as a size or an index: another number is an error at once
    else:
        below = list(ast.iter_child_nodes(node))
    for each in below:
        yield from _changes(each, function)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _of_if(node: ast.If, function: str) -> Iterator[Change]:
    # What stands before a raise in its block makes the message.
    guard = isinstance(node.body[-1], ast.Raise)
    yield Change(node.test, "False", "guard removed" if guard else "branch", function)
    if not guard:
        yield Change(node.test, "True", "branch", function)
        for each in node.body:
            yield from _changes(each, function)
    yield from _changes(node.test, function)
    for each in node.orelse:
        yield from _changes(each, function)


def _of_default(node: ast.expr, function: str) -> Iterator[Change]:
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield Change(node, repr(not value), "default", function)
    elif isinstance(value, (int, float)):
        other = float(f"{3 * value:g}") if value and isinstance(value, float) else value + 1
        yield Change(node, repr(other), "default", function)
    elif value in CHOICES:
        yield Change(node, repr(CHOICES[value]), "default", function)


def _of_node(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names of operators, each with what it puts in the place of this very node."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                yield "comparison", _with(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
    elif isinstance(node, ast.BoolOp):
        yield "boolean", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for i in range(len(node.values)):
            rest = [*node.values[:i], *node.values[i + 1 :]]
            yield "boolean", rest[0] if len(rest) == 1 else _with(node, values=rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "sign or negation", node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not isinstance(node.left, ast.List):
        yield "arithmetic", _with(node, op=ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node)
    elif isinstance(node, ast.IfExp):
        yield "branch", node.body
        yield "branch", node.orelse
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
        yield "order of results", ast.Return(_with(node.value, elts=node.value.elts[::-1]))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement removed", ast.Pass()
    elif isinstance(node, ast.Call):
        yield from _of_call(node)


def _of_constant(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield "constant", ast.Constant(value + 1)
        if value == 1:
            yield "constant", ast.Constant(0)
    elif isinstance(value, str) and value in CHOICES:
        yield "constant", ast.Constant(CHOICES[value])


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    func = node.func
    name = func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""
    if name in TWINS:
        other = _with(func, **{"id" if isinstance(func, ast.Name) else "attr": TWINS[name]})
        yield "twin", _with(node, func=other)
    if name in METHODS and isinstance(func, ast.Attribute):
        yield "call removed", func.value
    elif name in WRAPPERS and node.args and not isinstance(node.args[0], (ast.Starred, ast.GeneratorExp)):
        yield "call removed", node.args[0]
    if name == "where" and len(node.args) == 3:
        condition, yes, no = node.args
        yield "select", _with(node, args=[condition, no, yes])
        yield "select", yes
    if name == "sum" and isinstance(func, ast.Attribute):
        yield "twin", _with(node, func=_with(func, attr="mean"))
    two = len(node.args) >= 2 and all(isinstance(each, (ast.Name, ast.Attribute)) for each in node.args[:2])
    if two and isinstance(func, ast.Name) and name not in NOT_SWAPPED:
        yield "order of arguments", _with(node, args=[node.args[1], node.args[0], *node.args[2:]])


def _with(node: ast.AST, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _text(node: ast.AST) -> str:
    text = ast.unparse(node)
    plain = isinstance(node, (ast.stmt, ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.Subscript))
    return text if plain else f"({text})"
