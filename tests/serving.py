"""A server of a service in a thread of the test."""

import contextlib
import threading

from p2pzoo_serve.app import make_app
from p2pzoo_serve.commands import make_access
from p2pzoo_serve.server import Server, listen


@contextlib.contextmanager
def running(service, access=None):
    """The port of a server of this service, in a thread."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(make_app(service, access or make_access(listener, "127.0.0.1", None, None)), service.worker)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive()
