"""Declarations as stored: read strictly, rebuilt under the trust rules, compared, carried."""
