"""
Memory that was freed, given back to the system: glibc keeps what lies between pieces that are in use.
"""

from __future__ import annotations

import asyncio
import ctypes


def give_back() -> None:
    """In a thread, since it takes milliseconds; does nothing where the C library has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        asyncio.get_running_loop().run_in_executor(None, trim, 0)
