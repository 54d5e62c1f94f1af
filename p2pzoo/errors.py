"""The one exception that means "the user can mend this": it is shown as it stands, with exit code 2."""


class UserError(Exception):
    """What is wrong, where, and what to do; several faults are several lines."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
