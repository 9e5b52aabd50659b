"""The contracts that every polyattn plugin is written against.

Importing this package imports nothing else: take what you need from its modules.

=================  ==========================================================================
``errors``         the hierarchy of typed errors
``spec``           frozen literals that describe what a plugin offers
``hooks``          the hook specifications (pluggy) and the version of the plugin interface
``diagnostics``    the event bus
``sinks``          where events can go: logging, JSON lines
``resolver``       how a mechanism asks for another mechanism by name
``config``         base classes for configuration schemas (pydantic)
``masks``          masks as values with an algebra
``positions``      rotary embeddings and relative position biases
``mechanism``      the protocol of a mechanism and the base class that does its house-keeping
``streaming``      the base class for mechanisms that run on the streaming tile engine
``products``       products of large matrices, between kernels
``simd``           the Numba tool kit; for kernels
=================  ==========================================================================
"""

__version__ = "0.1.0"
