"""NaN and infinity, caught where they arise and reported with their rows."""

from collections.abc import Mapping, Sequence

from torch import Tensor

SHOWN = 3
"""Rows named in a message; the others are counted."""


def check_rows(tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Check that every tensor [B, ...] is finite.

    Args:
        tensors: by the name they have in messages.
        names: of the B rows.

    Raises:
        FloatingPointError: names the first tensor with NaN or infinity, and its rows.
    """
    for what, tensor in tensors.items():
        finite = tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else tensor.isfinite()
        if not finite.all():
            bad = [names[row] for row in (~finite).nonzero()[:, 0].tolist()]
            raise FloatingPointError(f"{what} of {listed(bad)}: {kind_of(tensor)}")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def kind_of(tensor: Tensor) -> str:
    """Which of the two a tensor that is not finite holds."""
    return "NaN" if tensor.isnan().any() else "infinity"
