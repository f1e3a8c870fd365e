"""What the system refused, as a sentence: no space, no permission, no such file."""

from __future__ import annotations

import errno


def refused(error: OSError) -> str:
    """What was refused, where, and what to do."""
    # The second name is where a temporary file was to go.
    where = f" ({error.filename2 or error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; free some space and run the same command again to go on"
    return f"{error.strerror or error}{where}; check the path and its permissions"
