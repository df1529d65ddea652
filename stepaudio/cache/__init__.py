"""The persistent cache of reference encodings, on diskcache, without a single pickle.

encodings.py   EncodingCache: key, single flight, counters; read this first
folder.py      the folder's health: whatever goes wrong there costs speed, never a request
store.py       diskcache with our own Disk, eviction by bytes, the check of a database we did not write
container.py   one entry as bytes
tally.py       hits, misses and seconds saved, kept across restarts
"""

from stepaudio.cache.encodings import CacheOutcome, CacheStats, EncodingCache

__all__ = ["CacheOutcome", "CacheStats", "EncodingCache"]
