"""The playground: a page to draw and edit on.

It is files that a browser takes as they are, without a build step and without anything from
elsewhere. It uses the public API only. `routes` serves it.
"""
