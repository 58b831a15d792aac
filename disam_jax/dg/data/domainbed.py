"""PACS, VLCS, OfficeHome, TerraIncognita and DomainNet in the folders in which DomainBed keeps them."""

from dataclasses import dataclass
from pathlib import Path

from disam_jax.dg.data import registry
from disam_jax.dg.data.folder import ImageIndex, list_classes, read_lines
from disam_jax.dg.data.names import how_they_differ, near
from disam_jax.dg.data.registry import DataSet
from disam_jax.dg.data.walk import Places, places, subfolders, why_passed_over
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import brief, exists, is_folder, reason, shown

DUPLICATES = "domain_net_duplicates.txt"
HOW_TO_GET = "domainbed/scripts/download.py in https://github.com/facebookresearch/DomainBed downloads it"


@dataclass(frozen=True)
class Layout:
    """Where a benchmark's images are, and the names of its domains and classes.

    Attributes:
        name: the benchmark's.
        folder: the folder in DomainBed's data directory.
        domain_names: the domains' folders, in DomainBed's order.
        letters: DomainBed's short names of the domains.
        class_names: the classes' folders, in the order of the labels.
        reference: the paper.
        may_lack_classes: a domain need not have all classes.
        other_domains: the beginning of the names of folders that are domains of the full data set but not of
            the benchmark, and are not read; None if there are no such folders.
        has_duplicates: a list of duplicates belongs to the data set.
    """

    name: str
    folder: str
    domain_names: tuple[str, ...]
    letters: tuple[str, ...]
    class_names: tuple[str, ...]
    reference: str
    may_lack_classes: bool = False
    other_domains: str | None = None
    has_duplicates: bool = False


PACS = Layout(
    name="PACS",
    folder="PACS",
    domain_names=("art_painting", "cartoon", "photo", "sketch"),
    letters=("A", "C", "P", "S"),
    class_names=("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
    reference="Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017",
)

VLCS = Layout(
    name="VLCS",
    folder="VLCS",
    domain_names=("Caltech101", "LabelMe", "SUN09", "VOC2007"),
    letters=("C", "L", "S", "V"),
    class_names=("bird", "car", "chair", "dog", "person"),
    reference="Fang et al., Unbiased Metric Learning, ICCV 2013",
)

_OFFICE_HOME_CLASSES = """
Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer
Couch Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer
Helmet Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen
Pencil Postit_Notes Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda
Speaker Spoon TV Table Telephone ToothBrush Toys Trash_Can Webcam
"""

OFFICE_HOME = Layout(
    name="OfficeHome",
    folder="office_home",
    domain_names=("Art", "Clipart", "Product", "Real World"),
    letters=("A", "C", "P", "R"),
    class_names=tuple(_OFFICE_HOME_CLASSES.split()),
    reference="Venkateswara et al., Deep Hashing Network for Unsupervised Domain Adaptation, CVPR 2017",
)

# DomainBed's script makes the folder of a class in a location only if it finds an image for it.
TERRA_INCOGNITA = Layout(
    name="TerraIncognita",
    folder="terra_incognita",
    domain_names=("location_100", "location_38", "location_43", "location_46"),
    letters=("L100", "L38", "L43", "L46"),
    class_names=("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"),
    reference="Beery et al., Recognition in Terra Incognita, ECCV 2018",
    may_lack_classes=True,
    other_domains="location_",
)

_DOMAIN_NET_CLASSES = """
The_Eiffel_Tower The_Great_Wall_of_China The_Mona_Lisa aircraft_carrier airplane alarm_clock ambulance angel
animal_migration ant anvil apple arm asparagus axe backpack banana bandage barn baseball baseball_bat basket
basketball bat bathtub beach bear beard bed bee belt bench bicycle binoculars bird birthday_cake blackberry
blueberry book boomerang bottlecap bowtie bracelet brain bread bridge broccoli broom bucket bulldozer bus bush
butterfly cactus cake calculator calendar camel camera camouflage campfire candle cannon canoe car carrot
castle cat ceiling_fan cell_phone cello chair chandelier church circle clarinet clock cloud coffee_cup compass
computer cookie cooler couch cow crab crayon crocodile crown cruise_ship cup diamond dishwasher diving_board
dog dolphin donut door dragon dresser drill drums duck dumbbell ear elbow elephant envelope eraser eye
eyeglasses face fan feather fence finger fire_hydrant fireplace firetruck fish flamingo flashlight flip_flops
floor_lamp flower flying_saucer foot fork frog frying_pan garden garden_hose giraffe goatee golf_club grapes
grass guitar hamburger hammer hand harp hat headphones hedgehog helicopter helmet hexagon hockey_puck
hockey_stick horse hospital hot_air_balloon hot_dog hot_tub hourglass house house_plant hurricane ice_cream
jacket jail kangaroo key keyboard knee knife ladder lantern laptop leaf leg light_bulb lighter lighthouse
lightning line lion lipstick lobster lollipop mailbox map marker matches megaphone mermaid microphone
microwave monkey moon mosquito motorbike mountain mouse moustache mouth mug mushroom nail necklace nose ocean
octagon octopus onion oven owl paint_can paintbrush palm_tree panda pants paper_clip parachute parrot passport
peanut pear peas pencil penguin piano pickup_truck picture_frame pig pillow pineapple pizza pliers police_car
pond pool popsicle postcard potato power_outlet purse rabbit raccoon radio rain rainbow rake remote_control
rhinoceros rifle river roller_coaster rollerskates sailboat sandwich saw saxophone school_bus scissors
scorpion screwdriver sea_turtle see_saw shark sheep shoe shorts shovel sink skateboard skull skyscraper
sleeping_bag smiley_face snail snake snorkel snowflake snowman soccer_ball sock speedboat spider spoon
spreadsheet square squiggle squirrel stairs star steak stereo stethoscope stitches stop_sign stove strawberry
streetlight string_bean submarine suitcase sun swan sweater swing_set sword syringe t-shirt table teapot
teddy-bear telephone television tennis_racquet tent tiger toaster toe toilet tooth toothbrush toothpaste
tornado tractor traffic_light train tree triangle trombone truck trumpet umbrella underwear van vase violin
washing_machine watermelon waterslide whale wheel windmill wine_bottle wine_glass wristwatch yoga zebra zigzag
"""

DOMAIN_NET = Layout(
    name="DomainNet",
    folder="domain_net",
    domain_names=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    letters=("clip", "info", "paint", "quick", "real", "sketch"),
    class_names=tuple(_DOMAIN_NET_CLASSES.split()),
    reference="Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019",
    has_duplicates=True,
)

DATASETS = {
    layout.name: DataSet(
        f"images in --data-dir, {len(layout.domain_names)} domains of {len(layout.class_names)} classes", layout=layout
    )
    for layout in (PACS, VLCS, OFFICE_HOME, TERRA_INCOGNITA, DOMAIN_NET)
}


def layouts() -> dict[str, Layout]:
    """The registered data sets of images, including those of other packages.

    Example:
        >>> list(layouts())
        ['PACS', 'VLCS', 'OfficeHome', 'TerraIncognita', 'DomainNet']
    """
    return {name: entry.layout for name, entry in registry.DATASETS.items() if entry.layout is not None}


def find_layout(name: str) -> Layout | None:
    """The layout of this name, None if there is none.

    Args:
        name: Name in upper or lower case, with or without "_" and "-".

    Example:
        >>> find_layout("terra_incognita").name, find_layout("pacs").name, find_layout("digits")
        ('TerraIncognita', 'PACS', None)
    """
    known = registry.find_data_set(name)
    return None if known is None else registry.DATASETS[known].layout


def list_layout(name: str, data_dir: Path, duplicates: Path | None = None) -> ImageIndex:
    """Lists the images of a benchmark and checks that they are all its domains and classes and no others.

    Labels come from the layout's list of classes, in every domain. DomainBed numbers the classes of each domain by
    themselves, so that a class missing in one domain shifts its labels against the others'. Here a missing class is
    an error, but for TerraIncognita: an animal may never have passed at one of the locations. Of TerraIncognita, other
    locations than the four of DomainBed are not read. Folders are recognised in upper or lower case and with "_" for
    a space; other files beside them are passed over.

    From DomainNet, DomainBed deletes the images that `domain_net_duplicates.txt` in its repository names, one path
    relative to the folder a line. They are left out here if that file is given or lies in the folder; the images may
    have been deleted already. Without the file, all images are listed.

    Args:
        name: as for `find_layout`.
        data_dir: DomainBed's data directory, which holds the layout's folder, or that folder.
        duplicates: DomainNet's list of duplicates.

    Returns:
        ImageIndex; `left_out` are the duplicates that were there.

    Raises:
        InputError: if the name is unknown, or a domain, class or image is missing or not of this layout.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for path in [Path(folder, domain, name) for domain in PACS.domain_names for name in PACS.class_names]:
        ...         path.mkdir(parents=True)
        ...         (path / "1.jpg").touch()
        ...     len(list_layout("pacs", Path(folder)).paths)
        28

    References:
        Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021 (DomainBed).
    """
    layout = find_layout(name)
    if layout is None:
        raise InputError(f"no layout {name!r}; there are {', '.join(layouts())}")
    if duplicates is not None and not layout.has_duplicates:
        raise InputError(f"{layout.name} has no list of duplicates, got {duplicates}; only DomainNet has one")
    root = _find_root(layout, data_dir)
    found = _match(layout.domain_names, subfolders(root), f"domain of {layout.name}", layout.other_domains)
    data = places([root, *found.values()])
    folders = []
    for domain in layout.domain_names:
        if domain not in found:
            raise InputError(f"domain missing: {layout.name} needs the folder {_absent(root / domain, places([root]))}")
        folders.append(_class_folders(layout, found[domain], data))
    images, doubles = list_classes(folders, data)
    listed = _read_duplicates(layout, root, duplicates)
    paths = (path for domain in images for path, _ in domain) if listed else ()
    gone = {path: None for path in paths if _key(path.relative_to(root).as_posix()) in listed}
    kept = tuple(tuple(image for image in domain if image[0] not in gone) for domain in images)
    for domain, before, after in zip(layout.domain_names, images, kept, strict=True):
        emptied = sorted({label for _, label in before} - {label for _, label in after})
        if emptied:
            raise InputError(f"the list of duplicates names all images of {domain}/{layout.class_names[emptied[0]]}")
    return ImageIndex(root, layout.name, layout.domain_names, layout.class_names, kept, left_out=(*gone, *doubles))


def _find_root(layout: Layout, data_dir: Path) -> Path:
    if not exists(data_dir):
        raise InputError(f"no such folder: {shown(data_dir)}, which should hold {layout.folder}/; {HOW_TO_GET}")
    if is_folder(data_dir / layout.folder):
        return data_dir / layout.folder
    try:
        names = {_key(path.name) for path in data_dir.iterdir()}
    except OSError as error:
        raise InputError(f"cannot list {shown(data_dir)}: {reason(error)}") from error
    if data_dir.name == layout.folder or names & {_key(name) for name in layout.domain_names}:
        return data_dir
    raise InputError(
        f"no {layout.name} in {shown(data_dir)}: expected {shown(data_dir / layout.folder)} or the folders "
        f"{', '.join(layout.domain_names)} in it; {HOW_TO_GET}"
    )


def _key(name: str) -> str:
    return name.casefold().replace("_", " ")


def _match(names: tuple[str, ...], folders: list[Path], what: str, others: str | None = None) -> dict[str, Path]:
    """Which folder is which name; each folder must be one, or begin like the `others`, which are not read."""
    known = {_key(name): name for name in names}
    found: dict[str, Path] = {}
    for path in folders:
        name = known.get(_key(path.name))
        if name is None and others is not None and path.name.startswith(others):
            continue
        if name is None:
            meant = near(path.name, names)
            advice = "move it elsewhere" if meant is None else f"{how_they_differ(path.name, meant)}; rename or move it"
            raise InputError(f"{shown(path)} is not a {what}: {advice}")
        if name in found:
            raise InputError(f"{shown(path)} and {shown(found[name])} are the same {what}: move one elsewhere")
        found[name] = path
    return found


def _class_folders(layout: Layout, folder: Path, data: Places) -> list[tuple[Path, int]]:
    found = _match(layout.class_names, subfolders(folder, data), f"class of {layout.name}")
    missing = [name for name in layout.class_names if name not in found]
    if missing and (len(missing) == len(layout.class_names) or not layout.may_lack_classes):
        absent = _absent(folder / missing[0], data)
        raise InputError(f"class missing in a domain: {layout.name} needs the folder {absent}")
    return [(found[name], label) for label, name in enumerate(layout.class_names) if name in found]


def _absent(path: Path, data: Places) -> str:
    passed_over = why_passed_over(path, data)
    return shown(path) if passed_over is None else f"{shown(path)}, but that {passed_over}"


def _read_duplicates(layout: Layout, root: Path, given: Path | None) -> set[str]:
    if not layout.has_duplicates or (given is None and not exists(root / DUPLICATES)):
        return set()
    path = given or root / DUPLICATES
    lines = read_lines(path)
    for number, line in lines:
        if line.split("/")[0] not in layout.domain_names:
            raise InputError(
                f"{shown(path)} line {number}: expected a path like clipart/bear/image.jpg, got {brief(line)}"
            )
    return {_key(line) for _, line in lines}
