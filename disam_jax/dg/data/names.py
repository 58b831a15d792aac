"""Names of data sets, domains and classes: which can stand in a report, and which are mistaken for each other."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown

# Control characters, halves of a character (what Python makes of bytes that are not UTF-8) and line separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def check_name(name: str, what: str, where: Path | str | None = None) -> None:
    r"""Checks that a name can be written into tables and figures.

    Args:
        name: Name of a data set, a domain or a class.
        what: What has this name, for the message.
        where: File or folder that gives the name, for the message.

    Raises:
        InputError: If the name is empty, is not UTF-8, or has a line break or another control character.

    Example:
        >>> check_name("Real World", "domain")
        >>> check_name("a\n", "class")
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: the name of the class 'a\n' has a line break or control character: rename it
    """
    kinds = {unicodedata.category(char) for char in name}
    if name.strip() and kinds.isdisjoint(_UNPRINTABLE):
        return
    wrong = "is not UTF-8" if "Cs" in kinds else "has a line break or control character" if name.strip() else "is empty"
    rename = "rename it" if where is None else f"rename {shown(where)}"
    raise InputError(f"the name of the {what} '{shown(name)}' {wrong}: {rename}")


def plain(name: str) -> str:
    r"""A name without what is easily confused: case, Unicode form, and "_", "-" or spaces between words.

    Example:
        >>> plain("Real_World ") == plain("real world"), plain("cafe\u0301") == plain("caf\u00e9")
        (True, True)
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(re.split(r"[\s_-]+", folded)).strip()


def near(name: str, others: Iterable[str], cutoff: float = 0.85) -> str | None:
    """The one of some names that is probably meant by a name that is not among them.

    Args:
        name: Name that was looked for.
        others: Names that there are.
        cutoff: How similar it must be, from 0 to 1.

    Returns:
        The name that differs least, None if none is similar.

    Example:
        >>> near("Cat", ["cat", "dog"]), near("girafe", ["dog", "giraffe"]), near("dog", ["cat"])
        ('cat', 'giraffe', None)
    """
    by_plain: dict[str, str] = {}
    for other in others:
        by_plain.setdefault(plain(other), other)
    found = difflib.get_close_matches(plain(name), by_plain, n=1, cutoff=cutoff)
    return by_plain[found[0]] if found else None


def how_they_differ(name: str, other: str) -> str:
    r"""Says what tells two similar names apart, which may look the same on a screen.

    Example:
        >>> how_they_differ("Cat", "cat")
        "'Cat' and 'cat' differ in upper and lower case"
        >>> how_they_differ("cat", "cat ")
        "'cat' and 'cat ' differ in spaces"
        >>> print(how_they_differ("cafe\u0301", "caf\u00e9"))
        'cafe\u0301' and 'caf\xe9' differ in the Unicode form of their letters
    """
    composed, other_composed = (unicodedata.normalize("NFC", each) for each in (name, other))
    if composed == other_composed:
        return f"{name!a} and {other!a} differ in the Unicode form of their letters"
    both = f"'{shown(name)}' and '{shown(other)}' differ"
    if composed.casefold() == other_composed.casefold():
        return f"{both} in upper and lower case"
    without = re.compile(r"\s+")
    return f"{both} in spaces" if without.sub("", composed) == without.sub("", other_composed) else both


def hint(name: str, others: Iterable[str], cutoff: float = 0.85) -> str:
    """The end of a message about a name that is missing: which name is near, and what tells the two apart.

    Args:
        name: Name that was looked for.
        others: Names that there are.
        cutoff: How similar it must be, from 0 to 1.

    Returns:
        Text that begins with a colon or semicolon; empty if no name is near.

    Example:
        >>> hint("dog", ["Dog", "cat"])
        ": 'dog' and 'Dog' differ in upper and lower case"
        >>> hint("girafe", ["giraffe"]), hint("dog", ["cat"])
        ("; is 'giraffe' meant?", '')
    """
    other = near(name, others, cutoff)
    if other is None:
        return ""
    return f": {how_they_differ(name, other)}" if plain(name) == plain(other) else f"; is '{shown(other)}' meant?"


def check_names(name: str, domain_names: Sequence[str], class_names: Sequence[str]) -> None:
    """Checks that all names of a data set can be written into tables and figures, and told apart there.

    Args:
        name: Name of the data set.
        domain_names: D names.
        class_names: C names.

    Raises:
        InputError: As `check_name` and `check_different`.

    Example:
        >>> check_names("toy", ["photo", "sketch"], ["cat", "dog"])
    """
    for what, names in (("data set", [name]), ("domain", domain_names), ("class", class_names)):
        for each in names:
            check_name(each, what)
        check_different(names, what)


def check_different(names: Iterable[str], what: str) -> None:
    r"""Checks that no two names look the same.

    Args:
        names: Different names.
        what: What has them, for the message.

    Raises:
        InputError: If two names differ only in the Unicode form of their letters or in spaces around them.

    Example:
        >>> check_different(["cat", "Cat"], "class")
        >>> check_different(["cat", "cat "], "class")
        Traceback (most recent call last):
        ...
        disam_jax.dg.errors.InputError: two names of a class look the same: 'cat' and 'cat ' differ in spaces
    """
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if first != name:
            raise InputError(f"two names of a {what} look the same: {how_they_differ(first, name)}")
