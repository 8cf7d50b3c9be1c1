"""Caches of vectors: on disk, in memory, and of recent queries."""
