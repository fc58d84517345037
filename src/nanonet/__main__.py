"""``python -m nanonet``."""

from nanonet.cli import main

main()
