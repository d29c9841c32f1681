"""Numbers as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in decimal units: "16.5 GB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
