"""Numbers that a request may have. Standard library only, of Python 3.10: clients have it."""

from __future__ import annotations

PRIORITIES = 3
"""A request has a priority from 1 (first) to this."""
DEFAULT_PRIORITY = 2
MAX_SLOTS, CPU_SLOTS = 8, 1
"""Requests that take part in a step at most, and by default where the UNet is on a CPU only."""

MAX_CONTROL_PIXELS = 4 * 2048**2
"""Pixels of all images in CONTROL_IMAGES together: they are held in shared memory."""
MAX_EDIT_SIDE = 8192
"""Sides of an image that is edited in part, in pixels."""
FEATHER = 4
"""Width in pixels of the fade from template to edit, inwards from the border of the mask, unless
MASK_FEATHER says another."""
MAX_FEATHER = 128
"""Largest MASK_FEATHER."""
FIFTHS = 5
"""In so many parts of equal length a policy of edits divides a schedule."""
MAX_REGIONS = 7
"""Further masks with a prompt of their own in an edit, beside MASK and PROMPT."""
