"""`python -m remuda_cli`."""

from remuda_cli.main import main

main()
