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
        "The bare stream throws its bytes away. Ours hashes them (SHA-256, 0.15 s of a core for "
        "200 MB) and writes them to the page cache (0.07 s), on two cores that both ends of the "
        "stream also need. What page faults and copies cost on top is gone (it was 0.28 of the "
        "bare stream); hashing and writing in two threads, other chunk sizes and one malloc arena "
        "changed nothing. A faster digest would, but a dataset's name is its SHA-256."
    ),
    "memory a worker adds to train / the table's bytes": (
        "The float32 matrix is 1.0; first rows, labels and the order of a million windows are 0.1 "
        "(int64, as torch indexes); activations of a batch in two threads, weights and what torch "
        "loads with its first step are the rest. It lies at the bar: the medians of two runs "
        "were 1.49 and 1.5003."
    ),
}
