"""The one home of the version: the build, the command line and the metadata that is written read it here."""

__version__ = "0.1.0"
