"""Vectors kept: on disk, in memory, of recent queries."""
