"""Model files: the hub, folders, integrity checks, and conversions on disk."""
