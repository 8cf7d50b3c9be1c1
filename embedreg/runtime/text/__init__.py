"""Embeds texts with a local model: tokenize once, plan batches by tokens, run them."""
