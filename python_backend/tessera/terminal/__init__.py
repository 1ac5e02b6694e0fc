"""How the commands `tessera`, `tessera-build` and `tessera-serve` talk to people.

Lies here because all three may import it: the client may not import the runtime's other packages,
and the runtime may not import the client. Needs rich, which each of the three brings along, and
nothing else; imports nothing of Tessera.
"""
