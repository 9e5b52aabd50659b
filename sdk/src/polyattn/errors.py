"""All errors that are raised on purpose; see `polyattn_core.errors`."""

from polyattn_core.errors import *  # noqa: F403
