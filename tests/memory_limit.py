"""Work on a large file under a limit of the memory, in a process of its own."""

import os
import subprocess
import sys

import pytest

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and limits the memory")

_LIMITS = {"address space": ("VmSize", "RLIMIT_AS"), "data": ("VmData", "RLIMIT_DATA")}
_CHILD = r"""
import re, resource
from pathlib import Path

{program}

work["{what}"](Path("small"))  # libraries are loaded, and threads started
taken = int(re.search(r"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
limit = taken + {megabytes} * 2**20
resource.setrlimit(resource.{resource}, (limit, limit))
work["{what}"](Path("large"))
"""


def run_under_limit(program, what, folder, megabytes, *, of="address space"):
    """Do work on `small` without a limit, then on `large` with that memory and `megabytes` more. Returns the process.

    program  source that defines `work`: {what: function of the Path small or large, in `folder`}
    of       "address space", as of `ulimit -v`; "data": what the process allocates itself, without maps of files
    """
    field, resource = _LIMITS[of]
    child = _CHILD.format(program=program, what=what, field=field, megabytes=megabytes, resource=resource)
    return subprocess.run(
        [sys.executable, "-c", child], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "P2PZOO_CACHE": str(folder / "cache")},
    )  # fmt: skip
