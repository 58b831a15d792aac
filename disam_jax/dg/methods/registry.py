"""The list of methods: from the files of this package and from the entry points of installed packages."""

from collections.abc import Mapping, Sequence

from disam_jax.dg.data.names import hint
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods.base import Method
from disam_jax.dg.registry import Registry

# From here on a name is near to another one: two letters of "disam" may change places.
SIMILAR = 0.75

# Every file of this package with a table METHODS, in the order of the reports.
METHODS: Registry[Method] = Registry(
    "method",
    Method,
    "disam_jax.dg.methods",
    "METHODS",
    "disam_jax.methods",
    first=("erm", "sharpness_aware", "objectives", "alignment"),
)


def find_methods(names: Sequence[str], methods: Mapping[str, Method] = METHODS) -> dict[str, Method]:
    """Methods by name, each once; "all" stands for all but the controls.

    Upper and lower case are the same, and so is a name with or without hyphens: "v-rex" is "VREx".

    Args:
        names: Names of methods.
        methods: Methods to choose from.

    Returns:
        Methods in the order of the names.

    Raises:
        InputError: If a name is unknown.

    Example:
        >>> list(find_methods(["erm", "Sam", "group-dro"]))
        ['ERM', 'SAM', 'GroupDRO']
    """
    # Names that differ only in hyphens are found as they are written.
    known = {key: name for write in (_without_hyphens, str.lower) for name in methods for key in [write(name)]}
    found: dict[str, Method] = {}
    for name in names:
        if name.lower() == "all":
            found.update({each: method for each, method in methods.items() if not method.control})
        elif each := known.get(name.lower()) or known.get(_without_hyphens(name)):
            found.setdefault(each, methods[each])
        else:
            meant = hint(name, methods, SIMILAR)
            raise InputError(f"unknown --method {name}: the methods are {', '.join(methods)}, and all{meant}")
    return found


def _without_hyphens(name: str) -> str:
    return name.lower().replace("-", "")
