"""The BLAS that MLX's CPU build uses on Linux.

The wheel carries the reference BLAS. Symbols of a library loaded earlier with RTLD_GLOBAL win, so
loading OpenBLAS before `mlx.core` replaces it. That must happen before the first import of MLX,
hence from the package's own `__init__`.
"""

from __future__ import annotations

import ctypes
import sys

LIBRARY = "libopenblas.so.0"


def preload() -> str | None:
    """Load OpenBLAS where it helps. Returns why it is not in use, or None when it is (or moot)."""
    if not sys.platform.startswith("linux"):
        return None
    if "mlx.core" in sys.modules:
        return "mlx was imported before dg_mlx, so its slow BLAS is in use; import dg_mlx first"
    try:
        ctypes.CDLL(LIBRARY, ctypes.RTLD_GLOBAL)
    except OSError:
        return (
            f"{LIBRARY} is missing, so matrix products are slow; apt install libopenblas0-pthread"
        )
    return None


NOTE = preload()
"""Why MLX's CPU build is slow in this process; None when it is not."""
