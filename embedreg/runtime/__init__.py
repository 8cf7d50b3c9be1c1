"""The inference runtime: model files, devices and worker threads, batching, and the caches of models and vectors."""
