"""What nbval does not compare in notebooks; everything else must come out as it is stored."""

import pytest
from nbval.plugin import IPyNbFile

SKIPPED = (
    "stderr",  # progress bars and notices, which depend on the terminal and the machine
    "text/html",  # holds random element ids; the plain text beside it is compared
    "image/svg+xml",  # holds random ids and the time it was drawn
)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Tells nbval which kinds of output it does not compare."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare = collector.skip_compare + SKIPPED  # ty: ignore[invalid-assignment]  (nbval types the length)
