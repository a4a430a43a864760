"""The error that a user's input can cause, told apart from the errors that are ours."""


class InputError(ValueError):
    """Something the user gave (a path, a key, a file, a data set) cannot be used.

    The message is one sentence that names the thing, what was expected and what came. The command
    lines print it as ``error: <message>`` and exit with status 2; a traceback would hide it.
    """
