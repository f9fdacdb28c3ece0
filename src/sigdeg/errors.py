"""The errors a user is meant to read: one line, what was wrong and what would be right."""

__all__ = ["SigdegError", "TrainingError"]


class SigdegError(ValueError):
    """Bad input. The command line prints the message and exits with code 2."""

    exit_code = 2


class TrainingError(SigdegError):
    """Good input, but the work failed. The command line prints the message, exit code 1."""

    exit_code = 1
