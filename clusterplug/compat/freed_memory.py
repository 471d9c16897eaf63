# SPDX-License-Identifier: Apache-2.0
"""Keep freed memory in the process: on the CPU, asking the system for it again costs a quarter of a training step.

glibc returns every block above 32 MB to the system when it is freed, so each activation of a large point cloud comes
back as fresh pages, which the system must clear one by one. No host package is at fault, and nothing is patched.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and not to shrink it; call it before training on the CPU.

    The process then holds on to the most memory it ever used. With another C library nothing happens.

    Returns:
        bool: Whether the C library accepted.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if not sys.platform.startswith('linux'):
        return False
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):  # musl
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) for name, value in settings)
