"""The README as the package index shows it, where a link that is relative would lead nowhere."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def with_address(text: str, address: str) -> str:
    """The text with links to files and pictures of the repository at an address."""
    text = re.sub(r"(\]\()(?!https?:|#|mailto:)", rf"\1{address}/blob/main/", text)
    return re.sub(r"((?:src|srcset)=\")(?!https?:)", rf"\1{address}/raw/main/", text)


class Readme(MetadataHookInterface):
    """Called by hatchling when it builds a package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets the README, with the address of `project.urls`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = with_address(text, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
