"""Metrics of kept logits, against scikit-learn or loops that follow the definition."""

import numpy as np
import pytest
from sklearn import metrics as reference

from disam_jax.dg.errors import InputError
from disam_jax.dg.metrics.registry import LOGIT_METRICS, find_metrics

NAMES = {classes: [f"class {number}" for number in range(classes)] for classes in (2, 3, 7)}


def as_kept(logits):
    """As they come from a file: half precision, the largest of each example 0."""
    return (logits - logits.max(-1, keepdims=True)).astype(np.float16).astype(np.float64)


def draw(classes, examples, seed, coarse=False, absent=None):
    """Random logits and labels; coarse ones have many ties, and one class may be absent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    logits = rng.normal(0.0, 2.0, (examples, classes)) + 2.0 * np.eye(classes)[labels]
    return as_kept(np.round(logits) if coarse else logits), labels


CASES = {
    "two classes": draw(2, 60, 0),
    "ties of two classes": draw(2, 60, 1, coarse=True),
    "ties": draw(3, 50, 2, coarse=True),
    "more classes": draw(7, 200, 3),
    "a class is absent": draw(7, 80, 4, absent=2),
    "the first class is absent": draw(3, 20, 5, coarse=True, absent=0),
    "one class of two": draw(2, 9, 6, absent=1),
    "one example": draw(3, 1, 7),
    "one example of two classes": draw(2, 1, 8),
    "all logits equal": (np.zeros((6, 3)), np.array([0, 1, 2, 0, 1, 0])),
    "large logits": (as_kept(np.array([[65504.0, 0.0], [0.0, 65504.0], [1.0, 0.0]])), np.array([0, 0, 1])),
}


def softmax(logits):
    return np.array([[np.exp(each) / np.exp(row).sum() for each in row] for row in logits])


def first_largest(logits):
    return np.array([list(row).index(max(row)) for row in logits])


def bins(logits, labels):
    """For each of 15 bins, the confidences and whether each answer is right."""
    found = [[] for _ in range(15)]
    for row, answer, label in zip(softmax(logits), first_largest(logits), labels, strict=True):
        # Open below, closed above, and nothing is less sure than 1 / C.
        (place,) = (b for b in range(15) if np.linspace(0, 1, 16)[b] < row.max() <= np.linspace(0, 1, 16)[b + 1])
        found[place].append((row.max(), float(answer == label)))
    return found


def calibration_error(logits, labels):
    gaps = [
        abs(np.mean([p for p, _ in each]) - np.mean([r for _, r in each])) * len(each)
        for each in bins(logits, labels)
        if each
    ]
    return sum(gaps) / len(labels)


def diagram(logits, labels):
    nothing = (0.0, np.nan, np.nan)
    return [
        number
        for each in bins(logits, labels)
        for number in ((len(each) / len(labels), *np.mean(each, axis=0)) if each else nothing)
    ]


def recalls(logits, labels):
    answers = first_largest(logits)
    return reference.recall_score(
        labels, answers, labels=np.arange(logits.shape[1]), average=None, zero_division=np.nan
    )


def area(logits, labels):
    if logits.shape[1] != 2 or len(set(labels)) < 2:
        return np.nan
    return reference.roc_auc_score(labels, logits[:, 1] - logits[:, 0])


def matrix(logits, labels):
    counts = reference.confusion_matrix(labels, first_largest(logits), labels=np.arange(logits.shape[1]))
    rows = [row / row.sum() if row.sum() else np.full(len(row), np.nan) for row in counts]
    return np.concatenate(rows)


REFERENCES = {
    "class_accuracy": recalls,
    "worst_class": lambda logits, labels: min(each for each in recalls(logits, labels) if each == each),
    "worst_domain": lambda logits, labels: reference.accuracy_score(labels, first_largest(logits)),
    "macro_f1": lambda logits, labels: reference.f1_score(labels, first_largest(logits), average="macro"),
    "auroc": area,
    "ece": calibration_error,
    "reliability": diagram,
    "confusion": matrix,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LOGIT_METRICS)
def test_a_metric_is_what_its_definition_says(name, case):
    if name not in REFERENCES:
        pytest.skip(f"{name} has no reference here yet")
    logits, labels = CASES[case]
    metric = LOGIT_METRICS[name]
    found = metric.of_run(logits, labels)
    np.testing.assert_allclose(found, REFERENCES[name](logits, labels), rtol=1e-12, atol=1e-12)
    if metric.parts is not None:
        assert np.shape(found) == (len(metric.parts(NAMES[logits.shape[1]])),)


@pytest.mark.parametrize("name", LOGIT_METRICS)
def test_neither_a_constant_for_each_example_nor_their_order_counts(name):
    logits, labels = CASES["more classes" if LOGIT_METRICS[name].classes is None else "two classes"]
    order = np.random.default_rng(0).permutation(len(labels))
    of_run = LOGIT_METRICS[name].of_run
    shifted = logits[order] + np.arange(len(labels))[:, None] / 8.0
    np.testing.assert_allclose(of_run(shifted, labels[order]), of_run(logits, labels), rtol=1e-12, atol=1e-12)


def test_every_metric_has_names_of_parts_that_are_apart():
    for name, metric in LOGIT_METRICS.items():
        parts = [] if metric.parts is None else list(metric.parts(NAMES[3]))
        assert len(set(parts)) == len(parts), name
        assert all(len(part) == len(metric.part_names) for part in parts), name
        assert (metric.draw is not None) == (not metric.tested), name


@pytest.mark.parametrize(
    ("names", "classes", "found"),
    [
        ([], 2, []),
        (["none"], 2, []),
        (["Macro-F1", "ece,auroc"], 2, ["macro_f1", "ece", "auroc"]),
        (["ece", "all"], 2, ["ece", *(name for name in LOGIT_METRICS if name != "ece")]),
        (["ALL"], 3, [name for name in LOGIT_METRICS if name != "auroc"]),
    ],
)
def test_metrics_are_found_by_name(names, classes, found):
    assert list(find_metrics(names, classes)) == found


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["ecee"],
            f"unknown --metrics ecee: the metrics are {', '.join(LOGIT_METRICS)}, all and none; is 'ece' meant?",
        ),
        (["auroc"], "--metrics auroc is for 2 classes, the results have 3: leave it out"),
        (["none", "ece"], "--metrics none stands alone, got none ece"),
    ],
)
def test_a_name_that_makes_no_sense_says_what_to_write(names, said):
    with pytest.raises(InputError) as error:
        find_metrics(names, 3)
    assert str(error.value) == said
