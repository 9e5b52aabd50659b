"""A package that promises a name which it has not."""

from acme_plain import Plain

__all__ = ["Missing", "Plain"]  # noqa: F822
