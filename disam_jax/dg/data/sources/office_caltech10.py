"""Office-Caltech: objects of ten classes from a web shop, a web search, a single-lens reflex camera and a webcam."""

from collections.abc import Iterator
from pathlib import Path

from disam_jax.dg.data.sources.convert import images_by_class
from disam_jax.dg.data.sources.registry import PlacedImage, Source

_CLASSES = (
    "backpack",
    "bike",
    "calculator",
    "headphones",
    "keyboard",
    "laptop_computer",
    "monitor",
    "mouse",
    "mug",
    "projector",
)
_COUNTS = {
    "amazon": (92, 82, 94, 99, 100, 100, 99, 100, 94, 98),
    "caltech": (151, 110, 100, 138, 85, 128, 133, 94, 87, 97),
    "dslr": (12, 21, 12, 13, 10, 24, 22, 12, 8, 23),
    "webcam": (29, 21, 31, 27, 27, 30, 43, 30, 27, 30),
}
_FOLDERS = {"amazon": "amazon", "caltech": "Caltech", "dslr": "dslr", "webcam": "webcam"}


def _images(checkout: Path) -> Iterator[PlacedImage]:
    return images_by_class({domain: checkout / folder for domain, folder in _FOLDERS.items()}, _CLASSES)


SOURCES = {
    "OfficeCaltech10": Source(
        "2,533 images of objects, 4 domains (dslr has 157), 10 classes",
        url="https://github.com/ChristophRaab/Office_Caltech_DA_Dataset",
        commit="91ad5c3f5b7b205083692e2aa62630692596cb1a",
        megabytes=51,
        counts={domain: dict(zip(_CLASSES, counts, strict=True)) for domain, counts in _COUNTS.items()},
        licence="None is stated; for research. The images belong to those who made them.",
        citation="Kate Saenko, Brian Kulis, Mario Fritz and Trevor Darrell. Adapting Visual Category Models to New "
        "Domains. ECCV 2010. Boqing Gong, Yuan Shi, Fei Sha and Kristen Grauman. Geodesic Flow Kernel for Unsupervised "
        "Domain Adaptation. CVPR 2012.",
        images=_images,
        checksum="75f1720d231a8cacc63dacd56bb9a5be57dcffe19fdf742885781065944a5da8",
    )
}
