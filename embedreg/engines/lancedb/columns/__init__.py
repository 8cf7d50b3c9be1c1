"""The life of a column on Lance tables: what `embedreg.columns` requires of this engine.

store: the table as a `ColumnStore`. place: where it is stored and what is kept beside it. declared: its columns as
declared, and the classes of their rows. making: vectors and digests of sources. staging: column files outside the
schema. comparing: a sample embedded again. indexing: the index of the new vectors. standing: the state of a
migration. commits: schemas and commits. adding, refreshing, migrating, switching and declaring are the operations.
"""
