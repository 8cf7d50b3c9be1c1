"""Small general tools that do not depend on embeddings: imports, files, locks, retries, printable text."""
