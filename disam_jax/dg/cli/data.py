"""`disam-jax data`: a data set is fetched and written, and what is to be known of it printed."""

import shlex
from typing import TYPE_CHECKING

from disam_jax.dg.cli.progress import progress, say
from disam_jax.dg.reading import shown

if TYPE_CHECKING:
    from rich.table import Table

    from disam_jax.dg.cli.options import Data
    from disam_jax.dg.data.sources.convert import Counts
    from disam_jax.dg.data.sources.get import Fetched


def run_data(options: "Data") -> None:
    """Fetches and writes a data set, and prints its counts, checksum, licence and citation."""
    from rich.console import Console

    from disam_jax.dg.data.sources.get import get_data_set

    with progress() as told:
        made = get_data_set(
            options.name,
            options.to,
            image_size=options.image_size,
            url=options.source,
            cache=options.cache,
            on_fetch=say,
            on_progress=lambda done, total: told.show("writing images", done, total),
        )
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{made.name}: {made.source.summary}")
    console.print()
    console.print(counts_table(made.source.counts))
    console.print()
    for title, text in facts(made).items():
        console.print(f"{title}: {text}")


def counts_table(counts: "Counts") -> "Table":
    """The number of examples of each class in each domain, with their sums.

    Args:
        counts: Numbers by domain and class.

    Returns:
        Table with a row for each class and a column for each domain.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for domain in (*counts, "all"):
        table.add_column(shown(domain), justify="right")
    for name in dict.fromkeys(name for each in counts.values() for name in each):
        numbers = [each.get(name, 0) for each in counts.values()]
        table.add_row(shown(name), *map(str, (*numbers, sum(numbers))))
    sums = [sum(each.values()) for each in counts.values()]
    table.add_row("all", *map(str, (*sums, sum(sums))))
    return table


def facts(made: "Fetched") -> dict[str, str]:
    """What to know of a data set that was written, by title.

    Args:
        made: What was written.

    Returns:
        Lines of text.
    """
    from disam_jax.dg.data.registry import find_data_set

    path = str(made.data)
    # A name goes before a path of the same name.
    path = path if find_data_set(path) is None else f"./{path}"
    return {
        "source": f"{made.source.url}, commit {made.source.commit}",
        "SHA-256": f"{made.checksum}, {compared(made)}",
        "licence": made.source.licence,
        "cite": made.source.citation,
        "next": f"disam-jax compare --data {shown(shlex.quote(path))}",
    }


def compared(made: "Fetched") -> str:
    """What the checksum of a data set that was written tells."""
    if not made.expected:
        return "not compared, because the bytes of scaled images depend on the version of Pillow"
    if made.checksum == made.expected:
        return "as expected"
    return f"expected {made.expected}; another version of {made.source.depends_on} may have made these arrays"
