"""What becomes of memory that tensors on a CPU have freed."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Names of glibc's options (malloc.h)."""


HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment of a process that asks the kernel for pages of 2 MB: going over activations, the processor looks up its
tables of 4 KB pages for a few hundredths of the time. Read once, when a process starts."""


def keep_freed_memory() -> None:
    """Keep freed memory for the tensors to come. Only glibc can be told so; elsewhere nothing happens.

    By itself it gives a batch's activations back to the kernel, which then clears every page anew for the next.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
