"""What is being done, on standard error: one line that changes on a terminal, and nothing where there is none."""

import sys


def say(text: str = "") -> None:
    """Show the text in place of the last one; nothing takes it away."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)
