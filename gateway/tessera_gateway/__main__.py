"""`python -m tessera_gateway`: the same as `tessera-gateway`."""

from tessera_gateway.cli import main

main()
