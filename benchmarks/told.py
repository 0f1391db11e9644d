"""End a script by an error that a user can act on, as the command line ends: one line, and status 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tdistill.runtime.errors import TdistillError, shown

EXIT_USAGE = 2


@contextmanager
def errors_told() -> Iterator[None]:
    """Print a ``TdistillError`` of the block without a traceback, and exit with status 2."""
    try:
        yield
    except TdistillError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
