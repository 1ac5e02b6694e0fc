"""Engines: things that run one network.

`base` says what an engine is, `registry` opens one by kind.
"""
