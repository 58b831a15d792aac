"""PACS: photos, art paintings, cartoons and sketches of seven classes, 227 pixels on each side."""

from collections.abc import Iterator
from pathlib import Path

from disam_jax.dg.data.sources.convert import images_by_class
from disam_jax.dg.data.sources.registry import PlacedImage, Source

_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
_COUNTS = {
    "art_painting": (379, 255, 285, 184, 201, 295, 449),
    "cartoon": (389, 457, 346, 135, 324, 288, 405),
    "photo": (189, 202, 182, 186, 199, 280, 432),
    "sketch": (772, 740, 753, 608, 816, 80, 160),
}


def _images(checkout: Path) -> Iterator[PlacedImage]:
    return images_by_class({domain: checkout / "PACS" / domain for domain in _COUNTS}, _CLASSES)


SOURCES = {
    "PACS": Source(
        "9,991 images of 227 pixels, 4 styles, 7 classes",
        url="https://github.com/MachineLearning2020/Homework3-PACS",
        commit="d586a6cf3db84896fb6cc465c7bf51bdaf6d65d8",
        megabytes=175,
        counts={domain: dict(zip(_CLASSES, counts, strict=True)) for domain, counts in _COUNTS.items()},
        licence="None is stated; for research. The images are from Caltech256, Sketchy, TU-Berlin and Google Images "
        "and belong to those who made them.",
        citation="Da Li, Yongxin Yang, Yi-Zhe Song and Timothy M. Hospedales. Deeper, Broader and Artier Domain "
        "Generalization. ICCV 2017.",
        images=_images,
        checksum="d328addd8e1835ed868bc8d981c52b5770cd6ecba23a7ddb57d27f074029a86d",
    )
}
