"""The one exception that a command turns into a single line and exit code 2."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong and what to do, in one line."""
