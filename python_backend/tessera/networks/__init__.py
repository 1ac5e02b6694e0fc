"""The modules behind a bundle's graphs, which are exported and run, and their weights by name.

Includes the token-sparse UNet and its program. Knows no engines and no requests.
"""
