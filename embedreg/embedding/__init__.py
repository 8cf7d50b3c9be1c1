"""Columns, queries and tables through a function: schemas, the one call of a model, what failed."""
