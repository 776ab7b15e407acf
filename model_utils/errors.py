"""The one exception that reaches a user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can put right: a file, a value, a command line.

    The message is one sentence that names the file, the value and the remedy. Entry scripts
    print it as ``error: <message>`` and exit with status 2; library users catch it as an
    ordinary exception.
    """
