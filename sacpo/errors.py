"""The errors that users can see. Ray sends them between processes, so each can be pickled from its arguments."""


class SacpoError(Exception):
    """Base of all errors that this package raises on purpose."""


def first_line(error: BaseException) -> str:
    """The first 300 characters of the first line of an error; messages of libraries can be pages long."""
    return (str(error).splitlines() or [""])[0][:300]


def last_line(error: BaseException) -> str:
    """The last line of an error that ends with the traceback of another process: what went wrong there."""
    return (str(error).strip().splitlines() or [""])[-1][:300]


class SpaceError(SacpoError, ValueError):
    """The space or the command line is wrong.

    Args:
        source: The file, or another origin of the settings.
        problems: One line for each problem: the setting, the given value, the allowed values, the way out.
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
    """A data file cannot be used: it is unreadable, empty, in another format, or has too many invalid rows."""


class StoreError(SacpoError):
    """The store cannot be used, or lacks something, or holds an output that does not match its record."""


class ClusterError(SacpoError):
    """The cluster cannot be reached, or can never run the space."""


class StepError(SacpoError):
    """A step failed: training diverged, a setting had no effect, its workers died too often, or similar."""
