"""Templates: images that edits start from, and the activations recorded for them.

`store` keeps both on disk, `memory` keeps recorded steps in host memory, `storage` says in which
form and how many of them fit a budget, `recorder` makes them. See docs/internals/templates.md.
"""
