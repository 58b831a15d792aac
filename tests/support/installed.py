"""Packages that Python takes for installed."""


def install(folder, name, entry_points):
    """Notes in a folder that a package is installed there, with the text of its entry points."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
