"""`python -m audiolitefocus` is the `audiolitefocus` command."""

from audiolitefocus.cli import main

main()
