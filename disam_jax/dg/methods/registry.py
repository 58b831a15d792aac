"""The list of methods: from the files of this package and from the entry points of installed packages."""

from collections.abc import Callable, Mapping, Sequence

from disam_jax.dg.data.names import hint
from disam_jax.dg.errors import InputError
from disam_jax.dg.methods.base import Method
from disam_jax.dg.methods.combinations import sharpness_forms
from disam_jax.dg.registry import Registry

# From here on a name is near to another one: two letters of "disam" may change places.
SIMILAR = 0.75

# Every file of this package with a table METHODS, in the order of the reports; each method is followed by its forms
# at SAM's and DISAM's w + e.
METHODS: Registry[Method] = Registry(
    "method",
    Method,
    "disam_jax.dg.methods",
    "METHODS",
    "disam_jax.methods",
    first=("erm", "sharpness_aware", "objectives", "alignment"),
    derive=sharpness_forms,
)

# What `--method` takes for many methods at once. "all" keeps the meaning that it has in stored commands: what is
# registered since then for comparison with other benchmarks is extra.
GROUPS: Mapping[str, Callable[[Method], bool]] = {
    "all": lambda method: not (method.control or method.extra),
    "bases": lambda method: not method.control and "rho" not in method.hparams,
    "everything": lambda method: not method.control,
}


def find_methods(names: Sequence[str], methods: Mapping[str, Method] = METHODS) -> dict[str, Method]:
    """Methods by name, each once, and groups of them.

    "all" stands for the methods that are neither controls nor extra, "bases" for those that do not perturb,
    "everything" for all but the controls.

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
        if within := GROUPS.get(name.lower()):
            found.update({each: method for each, method in methods.items() if within(method)})
        elif each := known.get(name.lower()) or known.get(_without_hyphens(name)):
            found.setdefault(each, methods[each])
        else:
            meant = hint(name, methods, SIMILAR)
            listed = ", ".join(each for each, method in methods.items() if not method.extra or "+" not in each)
            raise InputError(
                f"unknown --method {name}: the methods are {listed}, and {', '.join(GROUPS)}; "
                f"`disam-jax list` has their forms with +SAM and +DISAM too{meant}"
            )
    return found


def _without_hyphens(name: str) -> str:
    return name.lower().replace("-", "")
