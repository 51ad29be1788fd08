"""Hardware-aware neural architecture search for real-time semantic segmentation.

Importing this package does no work: it reads no file, touches no device and needs nothing but Python.
"""

__version__ = "0.1.0"
