"""What callers bring, as Arrow, exactly or an error; vectors between functions, numpy and Arrow."""
