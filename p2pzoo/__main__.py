"""`python -m p2pzoo`, which launchers such as torchrun need."""

from p2pzoo.cli import main

main()
