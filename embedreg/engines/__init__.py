"""The engines where data lies: a folder each, imported only where its library is already, or is asked for."""
