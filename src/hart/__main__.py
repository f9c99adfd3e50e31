"""`python -m hart`, the same as the command `hart`."""

import sys

from hart.cli import main

if __name__ == "__main__":
    sys.exit(main())
