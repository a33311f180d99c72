"""Why a bar is not reached: what the profile says, and what the limit is.

By the figure's name; shown for the rows that fail and for no others.
"""

from __future__ import annotations

REASONS: dict[str, str] = {
    "windows/s of two jobs at a time / one job alone": (
        "One job alone leaves little for a second one: its threads compute parts of each batch and "
        "keep both cores busy, where torch's own two threads were worth 1.3 to 1.4 of one. The bar "
        "was set for those; two jobs cannot be faster than two cores. A slower job alone would "
        "reach it, and nobody would be served."
    ),
    "upload bytes/s, hash and fsync / bare grpc.aio stream": (
        "The bare stream throws its bytes away; for 200 MB both of its ends take 0.38 to 0.43 s of "
        "CPU. Ours are the same stream (the client a little cheaper) and, in the server, SHA-256 "
        "(0.12 s, as with all bytes in the cache) and the page cache (0.06 s): 0.49 s. With both "
        "cores always busy the ratio would be 0.78 to 0.82. They are not: hashing and writing are "
        "one chain of 0.18 s that waits for Python's lock twice a chunk, for 0.06 to 0.1 s in all, "
        "where the whole bare stream takes 0.2 s. Frame, window and buffer sizes, writing in "
        "batches, and hashing and writing in two threads changed nothing; a faster digest would, "
        "but a dataset's name is its SHA-256."
    ),
}
