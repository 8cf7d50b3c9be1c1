"""Images: opening them as upright RGB, and what data may make this process read (`embedreg.media`).

Functions only need `open_image`. Names are loaded on first use: a process that only sets allowances needs neither
Pillow nor an HTTP client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.images.opening import open_image
    from embedreg.media.allowances import ImagePolicy, allow_images, current_policy
    from embedreg.media.fetching import url_retrieve

__all__ = ["ImagePolicy", "allow_images", "current_policy", "open_image", "url_retrieve"]

_HOMES = {
    "ImagePolicy": ".media.allowances",
    "allow_images": ".media.allowances",
    "current_policy": ".media.allowances",
    "open_image": "opening",
    "url_retrieve": ".media.fetching",
}

if not TYPE_CHECKING:  # a type checker reads the imports above
    __getattr__, __dir__ = index(__name__, _HOMES)
