"""Which cases of dealt tests are run when: on a module with every kind of them."""

import itertools

import dealing
import pytest

MODULE = """
import pytest
pytestmark = pytest.mark.dealt
FORMS, VARIANTS, DTYPES = ["f1", "f2", "f3"], ["v1", "v2", "v3", "v4"], [int, float]

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_all(form, variant, dtype): pass

@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_two(form, variant): pass

@pytest.mark.parametrize("variant", [*VARIANTS, "v5", pytest.param("v6", marks=pytest.mark.slow)])
def test_more(variant): pass

@pytest.mark.dealt
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_marked_itself(form, variant): pass

@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_slow(variant): pass

def test_alone(): pass
"""
INI = "[pytest]\nmarkers = \n    slow\n    dealt\n    rest\n    product\n"


class Collected:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        dealing.deal(items)
        self.items = list(items)


@pytest.fixture(scope="module")
def dealt(tmp_path_factory):
    """The values of the cases of each test: in the default run, in that and in CI, and all of them."""
    folder, plugin = tmp_path_factory.mktemp("dealt"), Collected()
    (folder / "test_toy_of_dealing.py").write_text(MODULE)
    (folder / "pytest.ini").write_text(INI)
    options = ["-qq", "--collect-only", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={folder}"]
    assert pytest.main([str(folder), "-c", str(folder / "pytest.ini"), *options], plugins=[plugin]) == 0
    found = [{}, {}, {}]
    for item in plugin.items:
        values = tuple(getattr(item, "callspec", item).__dict__.get("params", {}).items())
        marks = {mark.name for mark in item.iter_markers()}
        assert ("rest" in marks) <= ("slow" in marks) >= ("product" in marks)
        for of, on in zip(found, ("slow" not in marks, "product" not in marks, True), strict=True):
            of.setdefault(item.originalname, []).extend([values] if on else [])
    return found


TESTS = ("test_all", "test_two", "test_more", "test_marked_itself", "test_alone")


@pytest.mark.parametrize("name", TESTS)
def test_a_case_of_each_test_is_in_the_default_run(dealt, name):
    assert dealt[0][name]


def test_each_value_is_in_the_default_run_unless_it_is_slow(dealt):
    default, _, every = (set(itertools.chain(*itertools.chain(*of.values()))) for of in dealt)
    assert every - default == {("variant", "v6")}


def test_a_test_that_is_marked_itself_has_each_of_its_values(dealt):
    default, _, every = (set(itertools.chain(*of["test_marked_itself"])) for of in dealt)
    assert default == every


def test_each_pair_of_values_of_a_test_is_in_ci(dealt):
    for name in TESTS:
        ci, every = ({pair for case in of[name] for pair in itertools.combinations(case, 2)} for of in dealt[1:])
        assert ci == every, name


def test_the_default_run_and_ci_have_no_more_than_that(dealt):
    assert [{name: len(of[name]) for name in dealt[2]} for of in dealt] == [
        {"test_all": 4, "test_two": 1, "test_more": 1, "test_marked_itself": 4, "test_slow": 0, "test_alone": 1},
        {"test_all": 12, "test_two": 12, "test_more": 6, "test_marked_itself": 12, "test_slow": 4, "test_alone": 1},
        {"test_all": 24, "test_two": 12, "test_more": 6, "test_marked_itself": 12, "test_slow": 4, "test_alone": 1},
    ]


def test_values_of_different_types_are_different():
    cases = [[("x", type(value), value)] for value in (1, 1.0, True)]
    assert dealing.covering(cases, {}) == [0, 1, 2]
