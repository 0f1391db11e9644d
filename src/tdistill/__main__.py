"""Start the command line, ready for a stop before anything else is imported."""

import signal

from tdistill.runtime.stops import watched


def main() -> None:
    """Run ``tdistill``."""
    try:
        with watched():
            from tdistill.cli import main as command_line

            command_line()
    finally:
        # All is done: a late Ctrl-C ends the interpreter's own end in silence.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
