"""The contract of embedding functions, and an instance as a value."""
