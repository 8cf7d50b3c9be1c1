"""Images through a local model: opened and prepared in threads, run in batches."""
