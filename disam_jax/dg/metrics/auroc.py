"""Area under the receiver operating characteristic, for two classes."""

import numpy as np

from disam_jax.dg.metrics.base import LogitMetric


def auroc(logits: np.ndarray, labels: np.ndarray) -> float:
    """How often an example of class 1 has a larger score than one of class 0; ties count half.

    ``P(s1 > s0) + P(s1 = s0) / 2`` with the scores ``s = l_1 - l_0`` of an example of either class.

    Args:
        logits: float64 [n, 2].
        labels: int [n].

    Returns:
        A number; NaN if all examples are of one class, or there are not two classes.

    References:
        Hanley and McNeil, The Meaning and Use of the Area under a Receiver Operating Characteristic Curve, Radiology
        143, 1982. Computed from ranks: Mann and Whitney, Annals of Mathematical Statistics 18, 1947.

    Example:
        >>> auroc(np.array([[0.0, -1.0], [0.0, 0.0], [0.0, 0.0]]), np.array([0, 0, 1]))
        0.75
    """
    if logits.shape[-1] != 2:
        return float("nan")
    scores, positive = logits[:, 1] - logits[:, 0], labels == 1
    high, low = np.count_nonzero(positive), np.count_nonzero(~positive)
    if not high or not low:
        return float("nan")
    # The rank of a value that occurs several times is the mean of its ranks.
    _, places, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2.0)[places]
    return float((ranks[positive].sum() - high * (high + 1) / 2.0) / (high * low))


LOGIT_METRICS = {
    "auroc": LogitMetric(
        auroc,
        "area under the ROC curve",
        r"$P(s_+ > s_-) + \frac{1}{2} P(s_+ = s_-)$, $s = l_1 - l_0$",
        needs="two classes, and examples of both in the target",
        classes=2,
    ),
}
