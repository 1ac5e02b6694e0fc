"""Sparse edits in the running batch: their steps, and which steps are to be sparse."""
