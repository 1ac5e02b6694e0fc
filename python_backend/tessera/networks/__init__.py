"""What a graph is: the modules that are exported and run, and their weights by name.

The token-sparse UNet and the program that it follows are among them.
"""
