"""Datasets as rows that can be read more than once: places, storage, formats, text files, images."""
