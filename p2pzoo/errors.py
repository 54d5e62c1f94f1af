"""The exceptions that the command line knows: what the user can mend, and what another process tells."""


class UserError(Exception):
    """The user can mend this: what is wrong, where, and what to do; several faults are several lines. Exit code 2."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Elsewhere(Exception):
    """A failure of ours in another process of the same run, which tells it: this one ends without a word."""
