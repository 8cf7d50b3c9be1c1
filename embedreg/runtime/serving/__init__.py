"""Serves many callers with one model: a micro-batcher and a buffer pool."""
