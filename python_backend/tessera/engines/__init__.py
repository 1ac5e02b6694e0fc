"""Engines, which each run one graph.

`base` defines the protocol, `registry` opens an engine by kind, `bundle` opens those of a bundle.
Knows no requests.
"""
