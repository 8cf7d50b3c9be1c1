"""The columns of Parquet and Arrow IPC files: files are made anew beside the data, and replace the old ones."""
