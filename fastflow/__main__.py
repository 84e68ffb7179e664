"""`python -m fastflow` is the command `fastflow`."""

import sys

from fastflow.cli import main

sys.exit(main())
