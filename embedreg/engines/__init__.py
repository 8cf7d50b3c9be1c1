"""The engines that hold data: a folder each, imported only once its library is loaded or requested.

The table of them is `embedreg.inspection.engines.ENGINES`. An engine of your own subclasses `Engine`:
docs/writing-an-engine.md.
"""

from embedreg.inspection.engines import Attachable, Declared, Engine, Statements, comes_from

__all__ = ["Attachable", "Declared", "Engine", "Statements", "comes_from"]
