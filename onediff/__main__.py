"""`python -m onediff` is the command `onediff`."""

import sys

from onediff.cli import main

sys.exit(main())
