"""The contract of embedding functions, and instances as values."""
