"""Images: opening them as upright RGB, and the folders and hosts that data may make this process read.

Functions only need `open_image`. Names are loaded on first use: a process that only sets allowances needs neither
Pillow nor an HTTP client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

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

if not TYPE_CHECKING:  # a type checker reads the imports above
    __getattr__, __dir__ = index(__name__, _HOMES)
