"""`python -m qload` is the command `qload`."""

from qload.cli import main

if __name__ == "__main__":
    main()
