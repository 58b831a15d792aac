"""Which cases of a product of parameters are run when.

Where nearly every case of a test compiles programs of its own, the test or its module is marked `dealt`:

    pytest                             each value of each parameter: in a case of the same test if the test is marked,
                                       of any test of the module if the module is; and one case of each test
    pytest -m "slow and not product"   each pair of values of two parameters of a test; CI runs it
    pytest -m slow                     every case

A value that is added to a table is in each of them without another line. What takes three parameters to go wrong, and
goes right for each pair of them, is in the last alone.
"""

import itertools

import pytest


def deal(items):
    """Marks the cases that the default run leaves out `slow`, and of those the ones that CI leaves out `product`."""
    tests, uses = {}, {}
    for item in items:
        dealt = next((node for node, _ in item.iter_markers_with_node("dealt")), None)
        if dealt is not None and hasattr(item, "callspec"):
            test = item.parent.nodeid, item.originalname
            tests.setdefault(test, (test if dealt is item else dealt.nodeid, []))[1].append(item)
    for scope, cases in tests.values():
        quick = [case for case in cases if not case.get_closest_marker("slow")]
        kept = covering([values_of(case) for case in quick], uses.setdefault(scope, {}))
        first = [quick[place] for place in kept]
        for case in quick:
            if case not in first:
                case.add_marker(pytest.mark.slow)
                case.add_marker(pytest.mark.rest)
        others = [case for case in cases if case not in first]
        pairs = dict.fromkeys((pair for case in first for pair in pairs_of(case)), 1)
        kept = covering([pairs_of(case) for case in others], pairs)
        for place, case in enumerate(others):
            if place not in kept:
                case.add_marker(pytest.mark.product)


def covering(cases, uses):
    """Positions of the cases to keep: at least one, and so many that each value of each case is used.

    The next is always the case with most values that were not used yet; of those, the one whose values were used least;
    of those, the first.

    Args:
      cases: The values of each case, hashable.
      uses: How often each value was used before; those of the chosen cases are added.
    """
    kept, left = [], list(range(len(cases)))
    while left:
        best = min(
            left, key=lambda n: (-sum(v not in uses for v in cases[n]), sum(uses.get(v, 0) for v in cases[n]), n)
        )
        if kept and all(value in uses for value in cases[best]):
            break
        kept.append(best)
        left.remove(best)
        for value in cases[best]:
            uses[value] = uses.get(value, 0) + 1
    return kept


def values_of(item):
    return [(name, _key(value)) for name, value in sorted(item.callspec.params.items())]


def pairs_of(item):
    """Of a test with one parameter, its values."""
    return list(itertools.combinations(values_of(item), 2)) or values_of(item)


def _key(value):
    """Equal for equal values of one type; a value that cannot be hashed is like no other."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value
