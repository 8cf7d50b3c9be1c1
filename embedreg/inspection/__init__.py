"""Declarations in anything that carries them: found, reported, checked, attached."""
