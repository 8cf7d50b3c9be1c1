"""Devices, precision, worker threads, and matrix products by oneDNN."""
