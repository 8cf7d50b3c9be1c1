"""Find, report, check and attach declarations in data of any kind."""
