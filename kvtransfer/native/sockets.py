"""The native loops that move bytes between sockets and memory.

The number behind their names grows when their arguments change: an older library is not used then.
"""

import ctypes
from functools import cache

from stafette.kvtransfer.native import loading

_NAME = "_moving"


@cache
def load() -> ctypes.CDLL | None:
    """Return the library, or None where it was not built."""
    library = loading.load(_NAME)
    wanted = "stafette_receive_2", "stafette_receive_answer_1"
    if library is None or not all(hasattr(library, name) for name in wanted):
        return None
    place, number, long_number = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64
    library.stafette_receive_2.argtypes = [place, place, long_number, place, number, number, number]
    library.stafette_receive_2.restype = number
    answer = library.stafette_receive_answer_1
    answer.argtypes = [place, place, long_number, place, number, number]
    answer.restype = number
    library.stafette_gather_1.argtypes = [place, place, long_number]
    library.stafette_gather_1.restype = None
    size = ctypes.c_uint32
    library.stafette_send_1.argtypes = [number, place, long_number, size, number, number]
    library.stafette_send_1.restype = number
    return library
