"""`python -m tessera.serve`: the same as `tessera-serve`."""

from tessera.serve.cli import main

main()
