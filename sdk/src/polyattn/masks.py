"""Masks as values that combine; see `polyattn_core.masks`."""

from polyattn_core.masks import *  # noqa: F403
