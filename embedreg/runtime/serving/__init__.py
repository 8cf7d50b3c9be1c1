"""Many callers, one model: micro-batches and a pool of buffers."""
