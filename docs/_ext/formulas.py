r"""Formulas of docstrings as mathematics.

A docstring is read in a terminal too, so it writes a formula as code, `e = rho g / ||g||`. On the API pages it becomes
$e = \rho\, g / \lVert g \rVert$. Code with a word that is no symbol stays as it is.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

TOKEN = re.compile(
    r"(?P<norm>\|\|)|(?P<abs>\|)|(?P<sum>sum_(\w|\{[^}]*\}))|(?P<name>[A-Za-z]+(_[A-Za-z]+)?)"
    r"|(?P<power>\^-?\w+)|(?P<number>\d+(\.\d+)?)|(?P<sign><-|<=|!=|[-+*/=<>()\[\],.])|(?P<space>\s+)"
)
# A formula has one of these; `M - 1` alone is left as code.
MARKS = re.compile(r"\|\||\bsum_|\bgrad\b|\^|\b[Labg]_[ij]\b|\brho\b|\blam\b|\bE z?|L\(w|w \+ e")
# The name of an argument, alone or with its value.
ARGUMENT = re.compile(r"[a-z_]{3,}(=\S*)?")
NAMES = {
    **{name: rf"\{name} " for name in ("rho", "alpha", "sigma", "max", "exp", "langle", "rangle")},
    **{name: rf"\operatorname{{{name}}}" for name in ("penalty", "tr", "abs")},
    "lam": r"\lambda ",
    "grad": r"\nabla ",
    "E": r"\mathbb{E}\, ",
    "over": r"\text{ over }",
    "TP": r"\text{TP}",
    "FP": r"\text{FP}",
    "FN": r"\text{FN}",
    "descent_lam": r"\text{descent_lam}",
}
SHARES = re.compile(r"a_[ijd]")
SIGNS = {"<-": r"\leftarrow ", "<=": r"\le ", "!=": r"\ne ", "*": r"\, ", ".": r"\cdot "}
SUBSCRIPTS = ("subset", "rest")


def name_as_tex(name: str) -> str | None:
    """A symbol, with or without a subscript; None for a word."""
    if name in NAMES:
        return NAMES[name]
    base, _, subscript = name.partition("_")
    if base in ("mean", "std") and len(subscript) == 1:
        return rf"\operatorname{{{base}}}_{subscript} "
    if base == "answer" and len(subscript) == 1:
        return rf"\hat{{y_{subscript}}} "
    if len(base) > 1 or (len(subscript) > 2 and subscript not in SUBSCRIPTS):
        return None
    letter = r"\alpha" if SHARES.fullmatch(name) else base
    if not subscript:
        return letter
    return rf"{letter}_{{\text{{{subscript}}}}}" if subscript in SUBSCRIPTS else f"{letter}_{{{subscript}}}"


def as_tex(code: str) -> str | None:
    """A formula in TeX; None for code that is none."""
    if not MARKS.search(code) or ARGUMENT.fullmatch(code):
        return None
    code = re.sub(r"<(\w), (\w)>", r"langle \1, \2 rangle", code)
    parts: list[str] = []
    place, open_norm = 0, False
    while place < len(code):
        token = TOKEN.match(code, place)
        if token is None:
            return None
        text, place = token[0], token.end()
        match token.lastgroup:
            case "norm":
                parts.append(r"\rVert " if open_norm else r"\lVert ")
                open_norm = not open_norm
            case "sum":
                parts.append(rf"\sum_{{{text[4:].strip('{}').replace(':', ' : ')}}} ")
            case "name" if text == "sqrt":
                inside = re.match(r"\(([^()]*)\)", code[place:])
                tex = as_tex(f"lam {inside[1]}") if inside else None
                if tex is None:
                    return None
                parts.append(rf"\sqrt{{{tex.removeprefix(NAMES['lam'])}}}")
                place += inside.end()
            case "name":
                tex = name_as_tex(text)
                if tex is None:
                    return None
                parts.append(tex)
            case "power":
                parts.append(f"^{{{text[1:]}}}")
            case "sign":
                parts.append(SIGNS.get(text, text))
            case "space":
                parts.append(" ")
            case _:
                parts.append(text)
    return "".join(parts)


def typeset(app: Sphinx, doctree: nodes.document) -> None:
    """Puts mathematics in the place of the formulas of an API page."""
    if not app.env.docname.startswith("api/"):
        return
    for literal in list(doctree.findall(nodes.literal)):
        tex = as_tex(" ".join(literal.astext().split()))
        if tex is not None:
            literal.replace_self(nodes.math(tex, tex))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to the build."""
    app.connect("doctree-read", typeset)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
