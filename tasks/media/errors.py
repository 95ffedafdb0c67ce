"""What a media job fails with."""

from bridge import PermanentError


class MediaError(PermanentError):
    """The file is at fault: the text names it and the reason, and no further attempt is made."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both in args: the exception crosses from process to process

    def __str__(self) -> str:
        return ": ".join(self.args)


class AnalysisRefusedError(PermanentError):
    """The analysis endpoint refuses the request as such (its key, its model): the same request would be refused again."""


class TemporaryError(Exception):
    """Something outside the file failed for now (an endpoint, a decoder out of time): the job's retry policy decides."""
