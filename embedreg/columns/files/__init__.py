"""The columns of Parquet and Arrow IPC files: new files are written beside the data, and replace the old ones."""
