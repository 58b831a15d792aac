"""RSSCN7: aerial images of seven kinds of land, each kind at four scales."""

import re
from collections.abc import Iterator
from pathlib import Path

from disam_jax.dg.data.sources.convert import images_in
from disam_jax.dg.data.sources.registry import PlacedImage, Source
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import shown

_FOLDERS = {
    "Field": "bField",
    "Forest": "eForest",
    "Grass": "aGrass",
    "Industry": "cIndustry",
    "Parking": "gParking",
    "Resident": "fResident",
    "RiverLake": "dRiverLake",
}
_SCALES = ("scale1", "scale2", "scale3", "scale4")
# The images of a class are numbered from 1, a hundred of each scale.
_OF_SCALE = 100


def _images(checkout: Path) -> Iterator[PlacedImage]:
    for name, folder in _FOLDERS.items():
        for path in images_in(checkout / folder):
            number = re.fullmatch("[a-g]([0-9]{3})", path.stem)
            scale = (int(number[1]) - 1) // _OF_SCALE if number else -1
            if not 0 <= scale < len(_SCALES):
                raise InputError(f"{shown(path)}: the name must be a letter and a number from 001 to 400")
            yield PlacedImage(path, _SCALES[scale], name)


SOURCES = {
    "RSSCN7": Source(
        "2,800 aerial images of 400 pixels, 4 scales, 7 classes",
        url="https://github.com/palewithout/RSSCN7",
        commit="6d77849df87d242b323184ab096e44dd63730c7e",
        megabytes=349,
        counts={scale: dict.fromkeys(_FOLDERS, _OF_SCALE) for scale in _SCALES},
        licence="None is stated; for research. The images belong to those who made them.",
        citation="Qin Zou, Lihao Ni, Tong Zhang and Qian Wang. Deep Learning Based Feature Selection for Remote "
        "Sensing Scene Classification. IEEE Geoscience and Remote Sensing Letters 12(11), 2015.",
        images=_images,
        checksum="9431c33fa266d002af7a3dd1220c5408a166b666369d60eb0e879bcc963dea0c",
    )
}
