"""Model files: the hub, folders, integrity, conversions kept on disk."""
