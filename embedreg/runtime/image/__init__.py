"""Embeds images with a local model: opens and prepares them in threads, runs them in batches."""
