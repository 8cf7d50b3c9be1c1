"""Small tools that know nothing of embeddings: imports, files, locks, retries, text for people."""
