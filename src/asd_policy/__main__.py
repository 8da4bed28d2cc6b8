"""`python -m asd_policy` is `asd-policy`."""

import sys

from asd_policy.cli import main

if __name__ == "__main__":
    sys.exit(main())
