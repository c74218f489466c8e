"""`gateway` and `python -m gateway`: the command line, and before its imports the signals of what serves."""

import sys

from gateway.process import signals


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        signals.at_start()
    from gateway import cli  # takes the better part of a second

    cli.main()


if __name__ == "__main__":
    main()
