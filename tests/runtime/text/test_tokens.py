"""Tokens without padding, and with it."""

import numpy as np
import pytest

from embedreg.runtime.text.tokens import Tokens

IDS = [[5, 6, 7], [8], [], [9, 10]]
ONES = [[1] * len(row) for row in IDS]
PADS = {"input_ids": 99, "attention_mask": 0}


def tokens(**options: object) -> Tokens:
    """Four rows of two kinds."""
    return Tokens.from_rows({"input_ids": IDS, "attention_mask": ONES}, PADS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [False, True])
def test_a_batch_is_padded_on_its_side(left: bool) -> None:
    """Rows of any order and choice come out whole, filled up with each kind's own value on the side asked for."""
    batch = tokens(left=left).padded(np.array([3, 0, 2]))
    expected = [[9, 10, 99], [5, 6, 7], [99, 99, 99]] if not left else [[99, 9, 10], [5, 6, 7], [99, 99, 99]]
    assert batch["input_ids"].tolist() == expected
    assert batch["attention_mask"].sum(axis=1).tolist() == [2, 3, 0]
    assert batch["input_ids"].dtype == np.int64


def test_parts_are_joined_row_after_row() -> None:
    """Tokenizing in pieces gives what tokenizing at once gives; what is not per token stays as it is."""
    flags = np.array([True, False, False, True])
    part = tokens(extras={"modality": "text"}, truncated=flags)
    joined = Tokens.join([part, part])
    assert len(joined) == 8
    assert joined.truncated is not None
    assert joined.truncated.tolist() == [*flags, *flags]
    batch = joined.padded(np.array([0, 4, 7]))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 6, 7], [9, 10, 99]]
    assert batch["modality"] == "text"


def test_what_does_not_fit_is_refused() -> None:
    """Kinds of different lengths, or one without a padding value, are refused."""
    with pytest.raises(ValueError, match="differ"):
        Tokens.from_rows({"input_ids": IDS, "attention_mask": ONES[:3]}, PADS)
    with pytest.raises(ValueError, match="token_type_ids"):
        Tokens.from_rows({"input_ids": IDS, "token_type_ids": ONES}, PADS)
    with pytest.raises(ValueError, match="no kind"):
        Tokens.from_rows({}, PADS)
