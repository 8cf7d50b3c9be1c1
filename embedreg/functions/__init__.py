"""The built-in embedding functions, one file each; the registry imports them by name."""
