"""Heart disease in four hospitals: 13 attributes of a patient, and which of them are missing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from disam_jax.dg.data.sources.convert import labelled
from disam_jax.dg.data.sources.registry import Source
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, read_bytes, shown

_FILES = {"cleveland": "cleveland", "hungarian": "hungarian", "switzerland": "switzerland", "long_beach": "va"}
_ATTRIBUTES = 13
_CLASSES = ("healthy", "disease")
_MISSING = -9.0


def _rows(path: Path) -> Iterator[tuple[list[float], str]]:
    """13 values (0 where missing), 13 flags (1 where missing) and the class of each patient."""
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        # Someone has put names of the columns before the numbers.
        if not line.strip() or line.startswith(b"X1,"):
            continue
        fields = line.strip().split(b",")
        if len(fields) != _ATTRIBUTES + 1:
            raise InputError(f"{shown(path)} line {number}: expected 14 numbers, got {len(fields)}")
        try:
            *values, degree = (_MISSING if field == b"?" else float(field) for field in fields)
        except ValueError as error:
            raise InputError(f"{shown(path)} line {number}: expected numbers, got {brief(line)}") from error
        missing = [value == _MISSING for value in values]
        row = [0.0 if gone else value for gone, value in zip(missing, values, strict=True)]
        # 1 to 4 are degrees of the disease.
        yield [*row, *map(float, missing)], _CLASSES[degree > 0]


def _arrays(checkout: Path) -> dict[str, np.ndarray]:
    examples = {
        domain: list(_rows(checkout / "Datasets" / f"processed.{name}.data")) for domain, name in _FILES.items()
    }
    return labelled(
        {domain: np.array([row for row, _ in rows], np.float32) for domain, rows in examples.items()},
        {domain: [label for _, label in rows] for domain, rows in examples.items()},
    )


SOURCES = {
    "heart": Source(
        "920 patients of 4 hospitals, 13 attributes and 13 flags of missing ones, 2 classes",
        url="https://github.com/hiteshwarsingh1/HeartDisease-Prediction",
        commit="b791ec9e8730124a4f3e68d903935cd7d38dcf60",
        megabytes=2,
        counts={
            "cleveland": {"healthy": 164, "disease": 139},
            "hungarian": {"healthy": 188, "disease": 106},
            "switzerland": {"healthy": 8, "disease": 115},
            "long_beach": {"healthy": 51, "disease": 149},
        },
        licence="The repository states none; the files are those of the UCI Machine Learning Repository. The data's "
        "authors ask that publications name the investigators: Andras Janosi (Budapest), William Steinbrunn (Zurich), "
        "Matthias Pfisterer (Basel), Robert Detrano (Long Beach and Cleveland).",
        citation="R. Detrano, A. Janosi, W. Steinbrunn, M. Pfisterer, J. Schmid, S. Sandhu, K. Guppy, S. Lee and V. "
        "Froelicher. International application of a new probability algorithm for the diagnosis of coronary artery "
        "disease. American Journal of Cardiology 64, 1989.",
        arrays=_arrays,
        checksum="bc1ca6cbfc90448cd46f4870855eb1b63b79cb5d2d5fb38d3c2dbdb3f715d618",
    )
}
