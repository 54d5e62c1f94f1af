"""The command line as `python -m p2pzoo`, for launchers such as torchrun."""

from p2pzoo.cli import main

main()
