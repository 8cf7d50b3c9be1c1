"""The contract of functions of images or recordings that share the base of `open-clip`."""

from __future__ import annotations

import pytest


class OnOpenClipsBase:
    """Left out of such a function's contract: what `open-clip`'s shows in a new process; stands before the contract."""

    def test_another_process_gives_the_same_vectors(self) -> None:
        """As for `open-clip`."""
        pytest.skip("open-clip's contract starts the process, which takes seconds to import torch")

    def test_metadata_rebuilds_the_function(self) -> None:
        """As for `open-clip`."""
        pytest.skip("open-clip's contract starts the process, which takes seconds to import torch")
