"""``python -m polyattn``: the command line."""

from .cli import main

main()
