"""The errors a user can meet. Each crosses process borders (Ray), so each pickles by its arguments."""


class SacpoError(Exception):
    """Root of every error that this package raises on purpose."""


def first_line(error: BaseException) -> str:
    """The beginning of what an error of a library says, which may go on for pages."""
    return (str(error).splitlines() or [""])[0][:300]


class SpaceError(SacpoError, ValueError):
    """The space or the command line is wrong. Carries every problem found, one message each.

    Args:
        source: The file (or other origin) that was read.
        problems: One line a problem: where, what was given, what is allowed, the way out.
    """

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(source, problems)
        self.source = source
        self.problems = problems

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{self.source}: {count} problem{'s' if count != 1 else ''}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


class DataError(SacpoError, ValueError):
    """A data file cannot be used: unreadable, in another format than declared, empty, or with too many bad rows."""


class StoreError(SacpoError):
    """The store cannot be used, or an output in it does not match its record."""


class ClusterError(SacpoError):
    """The cluster cannot be reached, or can never run what the space asks for."""


class StepError(SacpoError):
    """A step failed for a reason of its own (diverged, a setting without effect, a worker that kept dying)."""
