"""The vector columns of DuckDB tables: filled by UPDATE, switched by renames in one transaction."""
