"""Images: what may hold one, what data may make this process read, and the way to upright RGB.

`open_image` is the one call that functions need. Its names are loaded when they are first used: a process that only
allows something needs neither Pillow nor an HTTP client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedreg.images.allowances import ImagePolicy, allow_images, current_policy
    from embedreg.images.fetching import url_retrieve
    from embedreg.images.opening import open_image

__all__ = ["ImagePolicy", "allow_images", "current_policy", "open_image", "url_retrieve"]

_HOMES = {
    "ImagePolicy": "allowances",
    "allow_images": "allowances",
    "current_policy": "allowances",
    "open_image": "opening",
    "url_retrieve": "fetching",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'embedreg.images' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"embedreg.images.{home}"), name)
    globals()[name] = value
    return value
