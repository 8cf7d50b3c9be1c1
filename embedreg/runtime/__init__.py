"""The inference runtime: where models come from, where they run, and how long they stay in memory."""
