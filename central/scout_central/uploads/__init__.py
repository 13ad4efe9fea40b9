"""Files in: kept as they came, then landed in bronze as strings, one row per line.

datasets  what may be uploaded, and by which columns it is known
parse     reads an untrusted file; runs alone, in a child process with limits
door      keeps, parses, loads; the only part that knows the database
"""

from scout_central.uploads.datasets import DATASETS
from scout_central.uploads.door import Limits, Receipt, UploadDoor, UploadError

__all__ = ["DATASETS", "Limits", "Receipt", "UploadDoor", "UploadError"]
