"""Devices, precision, worker threads, and how fast this machine multiplies."""
