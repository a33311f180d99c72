"""Why a bar is not reached: what the profile says, and what the limit is.

By the figure's name; shown for the rows that fail and for no others.
"""

from __future__ import annotations

REASONS: dict[str, str] = {}
