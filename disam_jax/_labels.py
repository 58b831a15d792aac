"""Names of domains, classes and methods as figures, tables and terminals can show them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.legend import Legend

NO_WIDTH = "\N{ZERO WIDTH SPACE}"


def visible(name: str) -> str:
    r"""A name as a figure can show it: in one line, with what cannot be printed escaped.

    Args:
      name: Of a domain, a class or a method.

    Returns:
      Text for a title or a tick.

    Example:
      >>> print(visible("a\nb"), visible("\x1b[31m"))
      a b \x1b[31m
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(name.split()))


def curve_label(name: str) -> str:
    """A name for a curve that a legend then has, also where it begins with an underscore.

    Matplotlib leaves those out, so a space of no width stands before it; `name_legend` takes it away again.

    Args:
      name: Of a domain, a class or a method.

    Returns:
      Text for the `label` of a curve.

    Example:
      >>> curve_label("photo"), curve_label("_photo").startswith("_")
      ('photo', False)
    """
    text = visible(name)
    return NO_WIDTH + text if text.startswith("_") else text


def name_legend(legend: "Legend") -> None:
    """Gives a legend the names behind its curves' labels.

    Args:
      legend: Of curves with labels by `curve_label`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> panel = Figure().subplots()
      >>> curve = panel.plot([0, 1], [1, 0], label=curve_label("_photo"))
      >>> name_legend(legend := panel.legend())
      >>> legend.get_texts()[0].get_text()
      '_photo'
    """
    for text in legend.get_texts():
        text.set_text(text.get_text().removeprefix(NO_WIDTH))
