"""The error that a user can mend."""


class InputError(Exception):
    """Something that the user gave cannot be used; the message is one line and names it.

    The command line prints it without a traceback and exits with status 2.
    """
