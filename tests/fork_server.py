"""A process that has imported everything that a run needs, and forks for each command: `import torch` takes seconds.

A forked process is like one of `python -m p2pzoo ARGUMENTS`: it has its own environment, folder, stdin, stdout and
stderr, receives signals, and ends with the shutdown of the interpreter. Only its start is another: use the fixture
`start` where that matters.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading

RUN = 'import runpy; runpy.run_module("p2pzoo", run_name="__main__", alter_sys=True)'


class Forked:
    """A forked process. It has the interface of a subprocess.Popen as far as tests need it.

    stdin, stdout  text files; stdout also holds stderr
    returncode     -N if signal N ended it; None as long as it runs
    """

    def __init__(self, pid, status, stdin, stdout):
        self.pid, self.returncode, self._status = pid, None, status
        self.stdin, self.stdout = os.fdopen(stdin, "w"), stdout if stdout is None else os.fdopen(stdout)

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            [self.returncode] = struct.unpack("i", os.read(self._status, 4))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout):
        """(output, None) of the process, which is killed after `timeout` seconds."""
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        try:
            self.stdin.close()
            return self.stdout.read(), None
        finally:
            timer.cancel()
            self.wait(timeout)

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def close(self):
        """Kill the process, and close its files."""
        if self.poll() is None:
            self.kill()
            self.wait()
        for file in (self.stdin, self.stdout):
            with contextlib.suppress(BrokenPipeError, AttributeError):
                file.close()


class ForkServer:
    """Starts the process, which imports what a run of `recipe` needs. Use it as a context manager."""

    def __init__(self, recipe):
        self._socket, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno()), str(recipe)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
                pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, process_group=0,
            )  # fmt: skip

    def fork(self, *arguments, before="", code=RUN, env=None, output=None):
        """A Forked that runs `p2pzoo ARGUMENTS` with the environment and in the current folder of this process.

        before  source code to run first
        code    source code to run in place of p2pzoo, with the arguments in sys.argv
        env     environment variables besides
        output  file for stdout and stderr, in place of a pipe
        """
        stdin, own_stdin = os.pipe()
        own_stdout, stdout = (None, os.open(output, os.O_WRONLY | os.O_CREAT)) if output else os.pipe()
        own_status, status = os.pipe()
        request = json.dumps(
            {
                "arguments": [*map(str, arguments)],
                "code": f"{before}\n{code}",
                "environment": {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in (env or {}).items()}},
                "folder": os.getcwd(),
            }
        ).encode()
        socket.send_fds(self._socket, [struct.pack("i", len(request))], [stdin, stdout, status])
        self._socket.sendall(request)
        for file in (stdin, stdout, status):
            os.close(file)
        [pid] = struct.unpack("i", os.read(own_status, 4))
        return Forked(pid, own_status, own_stdin, own_stdout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()  # the server ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):  # all that it forked
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


# --- in the server ---------------------------------------------------------------------------------------------


def serve(control):
    """Fork for each request until the other end is closed. Returns (request, files) in a forked process, else None."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running = {}  # process -> the file for its exit code
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            os.read(wake, 1 << 12)
            for process in list(running):
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    _answer(running[process], os.waitstatus_to_exitcode(status))
                    os.close(running.pop(process))
        if control in ready:
            head, files, _, _ = socket.recv_fds(control, 4, 3)
            if not head:
                return None
            content = control.recv(*struct.unpack("i", head), socket.MSG_WAITALL)
            process = os.fork()
            if process == 0:
                control.close()
                for file in (wake, woken, *running.values(), files[2]):
                    os.close(file)
                return json.loads(content), files[:2]
            running[process] = files[2]
            _answer(files[2], process)
            for file in files[:2]:
                os.close(file)


def _answer(file, number):
    with contextlib.suppress(BrokenPipeError):
        os.write(file, struct.pack("i", number))


def become(request, files):
    """Turn this forked process into the one that was asked for."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    stdin, output = files
    for file, target in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(file, target)
    os.close(stdin)
    os.close(output)
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    for name, file, on_error in (("stdout", 1, errors or "strict"), ("stderr", 2, "backslashreplace")):
        stream = os.fdopen(file, "w", 1 if file == 2 else -1, encoding=encoding, errors=on_error, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["-m", *request["arguments"]]


def import_all(recipe):
    """Import what a run of the recipe imports, and check the files of its data: a short run does all of it."""
    import torch._dynamo  # noqa: F401

    with tempfile.TemporaryDirectory() as runs, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        from p2pzoo.cli import main

        main(
            ["run", recipe, "--profile", "smoke", "--runs", runs, "--quiet", "-s", "train.images=1"],
            standalone_mode=False,
        )
    gc.collect()
    gc.freeze()  # what is imported stays: no forked process looks for garbage in it


if __name__ == "__main__":
    _, number, recipe = sys.argv
    import_all(recipe)
    if job := serve(socket.socket(fileno=int(number))):
        become(*job)
        exec(job[0]["code"], {"__name__": "__main__"})
    else:
        os._exit(0)  # at once
