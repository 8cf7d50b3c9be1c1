"""Texts through a local model: tokenized once, planned over tokens, run in batches."""
