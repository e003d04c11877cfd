"""`python -m course_utils` is the command `course`."""

import sys

from course_utils.cli import main

if __name__ == "__main__":
    sys.exit(main())
