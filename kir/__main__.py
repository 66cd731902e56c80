"""`python -m kir` is the command `kir`."""

from kir.cli import main

main()
