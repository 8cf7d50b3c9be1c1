"""The light back end: a sentence-transformers model from its files, without torch: OpenVINO, or numpy for static ones.

`folder` decides whether it can run a model, `graph` has the layers, and there is one file for each architecture.
"""
