"""Errors that the user can fix: the command line prints them as one line, without a traceback."""


class UserError(ValueError):
    """Bad input; the message holds the offending value, where it came from and what to do."""
