"""The ranges of a plug-in's numbers."""

from __future__ import annotations

from holdfast.core.types import HoldfastError


def check_settings(plugin: object, *, positive: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    """Check the fields of a plug-in that are numbers; None passes, as in `micro_batch`.

    Raises:
        HoldfastError: one is out of range.
    """
    for name in positive:
        value = getattr(plugin, name)
        if value is not None and not value > 0:
            least = "at least 1" if isinstance(value, int) else "above 0"
            raise HoldfastError(f"{name} must be {least}, not {value}")
    for name in not_negative:
        value = getattr(plugin, name)
        if value is not None and not value >= 0:
            raise HoldfastError(f"{name} must not be below 0, not {value}")
