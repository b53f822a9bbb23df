"""`python -m ppcmi_fast.cli` is `ppcmi`."""

from ppcmi_fast.cli import main

main()
