"""Templates: images that edits start from, and the activations recorded for them.

`store` keeps both on disk. `memory` keeps recorded steps in host or GPU memory. `storage` chooses
the form of a recording that fits a byte budget. `recorder` makes recordings. See
docs/internals/templates.md.
"""
