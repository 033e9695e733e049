"""`python -m splitpoint` is the `splitpoint` command."""

import sys

from splitpoint.cli import main

sys.exit(main())
