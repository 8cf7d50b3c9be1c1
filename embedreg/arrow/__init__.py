"""Conversion of callers' data to Arrow, exact or with an error; and of vectors between functions, numpy and Arrow."""
