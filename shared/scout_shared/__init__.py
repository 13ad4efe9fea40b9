"""What every part of Scout agrees on: wire format, topics, receipts, errors, settings, logs.

Standard library and structlog only, because a 32-bit Raspberry Pi must run it.
This package imports no sibling and opens no file, database or socket of its own
(settings reads the one file that it is given).
"""

__version__ = "7.1.0"
