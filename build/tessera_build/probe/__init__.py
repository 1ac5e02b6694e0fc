"""Measures once per bundle where sparse edits differ from dense ones, and derives the policies of
EDIT_QUALITY from that: `tessera-build probe`.
"""
