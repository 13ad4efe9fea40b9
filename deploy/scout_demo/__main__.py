"""``python -m scout_demo``."""

import sys

from scout_demo.cli import main

sys.exit(main())
