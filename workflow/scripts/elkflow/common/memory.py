"""How the C library treats memory that CPU tensors have freed."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""glibc's option numbers (malloc.h)."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later tensors; without glibc, do nothing.

    By default it returns the activations of each batch to the kernel, which clears every page again for the next one.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
