"""End a script as the command line ends: an error is one line and status 2, and a stop says what is kept."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tdistill.runtime.errors import TdistillError, shown
from tdistill.runtime.stops import keeping, watched

EXIT_USAGE = 2
KEPT = "What is complete is kept, and the same command goes on from there."


@contextmanager
def script() -> Iterator[None]:
    """Print a ``TdistillError`` of the block without a traceback and exit with status 2, and handle stops."""
    with watched(), keeping(lambda: KEPT):
        try:
            yield
        except TdistillError as error:
            print(f"error: {shown(str(error))}", file=sys.stderr)
            sys.exit(EXIT_USAGE)
