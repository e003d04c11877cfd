"""Problems that a person can mend; the message is one clear sentence or a list of them."""


class CourseError(Exception):
    """Something is missing or wrong outside the code: the message says what, and what to do."""
