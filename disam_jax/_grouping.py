"""Groups a flat batch by domain on the host, before the step."""

from __future__ import annotations

import jax
import jax.typing
import numpy as np

from disam_jax._domains import check_ids, static_positive_int
from disam_jax._types import Examples


def group_by_domain(
    batch: Examples,
    domain_ids: jax.typing.ArrayLike,
    num_domains: int,
    per_domain: int | None = None,
    *,
    replace: bool = False,
    rng: np.random.Generator | None = None,
) -> Examples:
    """Groups a flat batch by domain on the host, for ``disam_jax.per_domain``.

    Args:
      batch: A pytree of numpy arrays ``[N, ...]``.
      domain_ids: The domain of each example, ``[N]``, of any integer dtype, in ``0 .. num_domains - 1``.
      num_domains: M.
      per_domain: n, how many examples of each domain to keep: the first n in the order of the batch, or n drawn with
        ``rng``. ``None`` keeps all, and then all domains must have the same number.
      replace: Fill a domain that has fewer than n examples by repeating them (with ``rng``: by drawing with
        replacement).
      rng: A numpy generator that draws the examples; ``None`` draws nothing.

    Returns:
      The pytree with leaves ``[M, n, ...]``.

    Raises:
      TypeError: Under ``jit``, or when an id is not an integer.
      ValueError: When a leaf is not ``[N, ...]``, an id is out of range, or the groups are ragged.

    Example:
      >>> import numpy as np
      >>> import disam_jax
      >>> x, ids = np.array([10.0, 20.0, 11.0, 21.0]), np.array([0, 1, 0, 1])
      >>> disam_jax.group_by_domain(x, ids, num_domains=2).tolist()
      [[10.0, 11.0], [20.0, 21.0]]
    """
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((batch, domain_ids))):
        raise TypeError(
            "group_by_domain: works on the host, with numpy, and was called under jit (batch or domain_ids is traced). "
            "Call it before the step, or use disam_jax.mean_by_domain(example_losses, domain_ids, num_domains) inside."
        )
    num_domains = static_positive_int(num_domains, "num_domains")
    ids = np.asarray(check_ids(np.asarray(domain_ids), num_domains)).astype(np.int64)
    if ids.ndim != 1:
        raise ValueError(f"group_by_domain: domain_ids must be [N], got {ids.shape}.")
    members = [np.flatnonzero(ids == i) for i in range(num_domains)]
    counts = [len(m) for m in members]
    if per_domain is None and len(set(counts)) > 1:
        raise ValueError(
            f"group_by_domain: the groups are ragged, domain_ids has {counts} examples of the domains in their order. "
            f"Write group_by_domain(batch, domain_ids, {num_domains}, per_domain={max(min(counts), 1)}), or keep the "
            "batch flat and use disam_jax.mean_by_domain, which takes unequal and absent domains."
        )
    n = counts[0] if per_domain is None else static_positive_int(per_domain, "per_domain")
    if min(counts) < (1 if replace else n):
        raise ValueError(
            f"group_by_domain: per_domain={n}, but domain_ids has {counts} examples of domains 0..{num_domains - 1}. "
            "Write a smaller per_domain, or replace=True to repeat the examples of a domain that has at least one."
        )
    chosen = np.stack([_choose(m, n, replace and len(m) < n, rng) for m in members])

    def gather(path, leaf):
        leaf = np.asarray(leaf)
        if leaf.ndim < 1 or leaf.shape[0] != len(ids):
            raise ValueError(
                f"group_by_domain: batch{jax.tree_util.keystr(path)} has shape {leaf.shape}, but domain_ids has "
                f"{len(ids)} entries: every leaf must be [N, ...]."
            )
        return leaf[chosen]

    return jax.tree_util.tree_map_with_path(gather, batch)


def _choose(members: np.ndarray, n: int, replace: bool, rng: np.random.Generator | None) -> np.ndarray:
    if rng is not None:
        return rng.choice(members, n, replace=replace)
    return np.resize(members, n) if replace else members[:n]
