"""Embedding of columns, queries and tables: schemas, the call of a function, and reports of failed rows."""
