"""Averages of weights against closed forms, and both forms of SWAD against their algorithms read point by point."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disam_jax.dg.training.averaging import (
    AVERAGING,
    SWAD,
    average_points,
    moving_average,
    swad_counts,
    swad_released_counts,
    swad_window,
)


def averaged(weights, decay):
    """The average after each of the weights [T, ...], which start far from the first of them."""
    average, found = jnp.full_like(weights[0], 100), []
    step = jax.jit(moving_average, static_argnames="decay")
    for count, each in enumerate(weights):
        average = step(average, each, jnp.int32(count), decay=decay)
        found.append(average)
    return np.stack([np.asarray(each, np.float64) for each in found])


@pytest.mark.parametrize(("decay", "horizon"), [(0.0, 1), (0.75, 4), (1.0, 12)])
def test_a_moving_average_is_a_mean_until_its_memory_is_full(decay, horizon):
    weights = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    found = averaged(jnp.asarray(weights), decay)
    for number in range(1, 13):
        start = min(number, horizon)
        ages = number - np.arange(start + 1, number + 1)
        older = decay ** (number - start) * weights[:start].mean(0)
        wanted = older + (1 - decay) * (decay ** ages[:, None] * weights[start:number]).sum(0)
        np.testing.assert_allclose(found[number - 1], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_moving_average_keeps_dtypes_and_takes_the_newest_integers(dtype):
    old = {"kernel": jnp.array([1, 2], dtype), "count": jnp.array([3], jnp.int32), "seen": jnp.array(False)}
    new = {"kernel": jnp.array([3, 6], dtype), "count": jnp.array([8], jnp.int32), "seen": jnp.array(True)}
    found = moving_average(old, new, jnp.int32(1), 0.9)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, new)
    assert jax.tree.map(lambda x: x.tolist(), found) == {"kernel": [2, 4], "count": [8], "seen": True}


NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "window"),
    [
        # It falls to the end.
        ([5, 4, 3, 2, 1], (4, 4)),
        ([5, 4, 3, 2, 1, 1.5], (5, 5)),
        ([5, 4, 3, 2, 1, 1.5, 1.2], (4, 6)),
        # It rises early. The level is 1.3 * (1 + 2 + 2) / 3.
        ([1, 2, 2] + [9] * 6, (0, 2)),
        ([1, 2, 2] + [9] * 5, (0, 7)),
        ([1, 2, 2] + [9] * 5 + [2.1] + [9] * 6, (0, 8)),
        ([1, 2, 2] + [2.2] * 6, (0, 2)),
        ([1, 2, 2] + [2.1] * 6, (0, 8)),
        ([1] + [9] * 9, (0, 0)),
        ([1, 9, 9] + [8] * 8, (0, 10)),
        # A window that has ended does not open again.
        ([1, 1, 1] + [9] * 6 + [0.5] * 6, (0, 2)),
        # A plateau.
        ([1] * 10, (0, 9)),
        # What is not finite neither starts a window nor is within it.
        ([3, 1, 1, 1] + [NAN] * 6, (1, 3)),
        ([3, 1, 1, NAN] + [2] * 6, (4, 9)),
        ([3, 1, 1, 1] + [NAN] * 3 + [float("inf")] * 3, (1, 3)),
        ([NAN, 1, 1, 1], (1, 3)),
        ([NAN] * 8, (7, 7)),
        # Too short to tell.
        ([1], (0, 0)),
        ([1, 2], (1, 1)),
        ([1, 2, 3], (0, 2)),
    ],
)
def test_the_window_of_swad(losses, window):
    assert swad_window(np.array(losses, float)) == window


def as_it_comes(losses, converge, tolerance, ratio):
    """Algorithm 1 of SWAD: one point after the other, with what came before."""
    start, level = None, None
    for now in range(len(losses)):
        if start is None:
            recent = losses[max(now - converge + 1, 0) : now + 1]
            if len(recent) == converge and all(np.isfinite(recent)) and all(recent[0] <= x for x in recent):
                start, level = now - converge + 1, (1 + ratio) * sum(recent) / converge
        else:
            recent = losses[max(now - tolerance + 1, 0) : now + 1]
            if len(recent) == tolerance and not any(x <= level for x in recent):
                return start, now - tolerance
    return (len(losses) - 1 if start is None else start), len(losses) - 1


@pytest.mark.parametrize(("converge", "tolerance", "ratio"), [(3, 6, 0.3), (3, 2, 0.3), (1, 1, 0.0), (2, 3, 1.0)])
def test_the_window_of_swad_as_training_goes_on(converge, tolerance, ratio):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(400):
        losses = rng.choice([1.0, 1.25, 1.5, 2.0, 3.0, NAN], rng.integers(1, 16), p=[0.1, 0.2, 0.2, 0.2, 0.25, 0.05])
        wanted = as_it_comes(list(losses), converge, tolerance, ratio)
        assert swad_window(losses, converge, tolerance, ratio) == wanted, losses
        seen.add((wanted[0] == wanted[1], wanted[1] == len(losses) - 1))
    # Windows that end early, that end late, and single points.
    assert {(False, False), (False, True), (True, True)} <= seen


def queues(losses, converge, tolerance, ratio):
    """What the released code does, with two queues of the segments' numbers in the place of those of weights."""
    recent, kept = collections.deque(maxlen=converge), collections.deque(maxlen=tolerance)
    start = level = None
    taken, ended = [], False
    for now in range(len(losses)):
        recent.append(now)
        kept.append(now)
        if start is None:
            if len(recent) == converge and min(recent, key=lambda place: losses[place]) == recent[0]:
                start = recent[0]
                level = (1 + ratio) * np.mean([losses[place] for place in recent])
                if tolerance < converge:
                    taken += list(recent)[1 : 1 + converge - tolerance]
                elif tolerance > converge:
                    candidates = list(kept)[: tolerance - converge + 1]
                    after = 0
                    for place, each in enumerate(candidates):
                        if losses[each] > level:
                            after = place + 1
                    taken += candidates[after + 1 :]
        elif kept[0] >= start:
            if min(losses[place] for place in kept) > level:
                ended = True
                break
            taken.append(kept[0])
    if start is None:
        return [len(losses) - 1]
    if not ended:
        kept.popleft()
        while kept and min(losses[place] for place in kept) <= level:
            taken.append(kept.popleft())
    # Before anything is taken, the average is a copy of the start's weights.
    return taken or [start]


@pytest.mark.parametrize(("converge", "tolerance", "ratio"), [(3, 6, 0.3), (3, 2, 0.3), (1, 1, 0.0), (3, 3, 0.1)])
def test_released_swad_is_its_queues_as_training_goes_on(converge, tolerance, ratio):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(400):
        losses = rng.choice([1.0, 1.25, 1.5, 2.0, 3.0], rng.integers(1, 20), p=[0.1, 0.2, 0.2, 0.2, 0.3])
        wanted = np.bincount(queues(losses, converge, tolerance, ratio), minlength=len(losses))
        found = swad_released_counts(losses, converge, tolerance, ratio)
        assert found.tolist() == wanted.tolist(), losses
        seen |= {*found.tolist()}
        differs = found.tolist() != swad_counts(losses, converge, tolerance, ratio).tolist()
        seen.add("as in the paper" if not differs else "otherwise")
    assert {0, 1, "as in the paper", "otherwise"} <= seen
    # With the defaults, segments that come early are taken often.
    assert tolerance < 6 or {2, 3} <= seen


@pytest.mark.parametrize(
    ("losses", "counts"),
    [
        # Two segments before the start, the start twice, and a tail above the level left out.
        ([3, 1.3, 1.2, 1, 1.1, 1.2, 1.1, 1, 1.1, 1, 9, 9], [0, 0, 1, 2, 1, 1, 1, 1, 1, 1, 0, 0]),
        # A segment above the level keeps those before it out, and the one after it.
        ([1.4, 1.3, 9, 1.2, 1, 1.1, 1.2, 1.1, 1, 1.1], [0, 0, 0, 0, 2, 1, 1, 1, 1, 1]),
        # It ends when six in a row are above the level.
        ([3, 1.3, 1.2, 1, 1.1, 1.2] + [9] * 6 + [1], [0, 0, 1, 2, 1, 1] + [0] * 7),
        # It falls to the end.
        ([5, 4, 3, 2, 1], [0, 0, 0, 0, 1]),
        # What is not finite neither starts a window nor is within it.
        ([3, NAN, 1.2, 1, 1.1, 1.2, 1.1, 1, 1.1, 1], [0, 0, 0, 2, 1, 1, 1, 1, 1, 1]),
        ([3, 1.3, 1.2, 1, 1.1, 1.2] + [NAN] * 6, [0, 0, 1, 2, 1, 1] + [0] * 6),
        ([NAN] * 4, [0, 0, 0, 1]),
    ],
)
def test_what_released_swad_counts(losses, counts):
    assert swad_released_counts(np.array(losses, float)).tolist() == counts


def test_every_form_of_swad_has_a_name_among_the_averages():
    assert SWAD.keys() < AVERAGING.keys()


def test_the_mean_over_the_windows_of_runs(nans_allowed):
    rng = np.random.default_rng(0)
    first, last = np.array([0, 1, 4, 2]), np.array([4, 2, 4, 3])
    values = {"kernel": rng.normal(size=(5, 4, 3, 2)), "bias": rng.normal(size=(5, 4))}
    # The second run diverges after its window.
    values["kernel"][3:, 1], values["bias"][3:, 1] = np.nan, np.inf
    dtypes, tolerance = {"kernel": jnp.float32, "bias": jnp.bfloat16}, {"kernel": 1e-6, "bias": 0.03}
    points = [
        {name: jnp.asarray(values[name][place], dtype) for name, dtype in dtypes.items()}
        | {"count": jnp.full(4, place, jnp.int32)}
        for place in range(5)
    ]
    places = np.arange(5)[None]
    counts = ((places >= first[:, None]) & (places <= last[:, None])).astype(int)
    # The second segment counts twice for the first run.
    counts[0, 1] = 2
    found = average_points(points, counts)
    for name, dtype in dtypes.items():
        assert found[name].dtype == dtype
        for run in range(4):
            wanted = np.repeat(values[name][:, run], counts[run], axis=0).mean(0)
            np.testing.assert_allclose(np.asarray(found[name][run], np.float64), wanted, atol=tolerance[name])
    assert found["count"].tolist() == [4] * 4
