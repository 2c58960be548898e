"""The exception that commands report as one line with exit code 2."""


class UserError(Exception):
    """An error that the user can fix: the message says in one line what is wrong and what to do."""
