"""A package that has any name that is asked for."""

__all__ = ["Plain"]  # noqa: F822


def __getattr__(name: str) -> object:
    import acme_plain

    return acme_plain.Plain
