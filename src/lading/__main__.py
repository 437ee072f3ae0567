"""`python -m lading` is the command line."""

import sys

from lading.cli import main

sys.exit(main())
