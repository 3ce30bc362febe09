"""Python processes for tests: new ones, and forks of a process that has imported torch, which saves seconds each.

A fork inherits neither goptim's extension nor threads. goptim treats it differently from a new process in one respect:
its steps run on Go's own threads instead of OpenMP's (goptim._native._gomp). If that matters, a server can run programs
itself, one after another.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Done(subprocess.CompletedProcess[str]):
    """The returncode, stdout and stderr of a finished process."""


class Process:
    """A running process."""

    def __init__(self, pid: int, stdout: Any, stderr: Any, status: Any) -> None:
        self.pid, self.stdout, self.stderr, self._status = pid, stdout, stderr, status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self, timeout: float = 60) -> Done:
        """Wait for its end and return its output. After the timeout it is killed, which is noted in stderr."""
        timer = _after(timeout, self.pid)
        try:
            out, err = _read_both(self.stdout, self.stderr)
        finally:
            late = timer()
        return Done([], self._status(), out, err + f"hangs for {timeout} seconds" * late)


def new(*words: object, **options: Any) -> Done:
    """Run Python with these arguments in a new process."""
    options = {"cwd": ROOT, "timeout": 300} | options
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, **options)
    return Done(done.args, done.returncode, done.stdout, done.stderr)


def start_new(*words: object, **options: Any) -> Process:
    """Start Python with these arguments in a new process."""
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    return Process(process.pid, process.stdout, process.stderr, process.wait)


class Server:
    """A process that has imported torch and goptim, and waits for requests to run Python."""

    def __init__(self, imports: str = "") -> None:
        self.imports = imports
        self.process: subprocess.Popen[bytes] | None = None

    def _connect(self) -> socket.socket:
        if self.process is None or self.process.poll() is not None:
            self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            path = os.pathsep.join(filter(None, [str(ROOT / "python"), os.environ.get("PYTHONPATH")]))
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), self.imports],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path},
            )
            theirs.close()
        return self.connection

    def stop(self) -> None:
        if self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.wait()
            self.process = None

    def start(
        self, *words: object, cwd: Path = ROOT, env: dict[str, str] | None = None, first: str = "", inside: bool = False
    ) -> Process:
        """Run Python with these arguments in a fork.

        Args:
            words: arguments of ``python``: a file, or ``-m`` and a module, or ``-c`` and a program, and its arguments.
            cwd: the working directory.
            env: environment variables in addition to this process's.
            first: a program to run first.
            inside: whether to run in the server instead of a fork, which supports only ``-c``.
        """
        connection = self._connect()
        request = {"words": [*map(str, words)], "cwd": str(cwd), "env": env or {}, "first": first, "inside": inside}
        out, err = os.pipe(), os.pipe()
        file = os.memfd_create("request")  # messages have a size limit
        os.write(file, json.dumps(request).encode())
        socket.send_fds(connection, [b"x"], [file, out[1], err[1]])
        for fd in (file, out[1], err[1]):
            os.close(fd)
        stdout, stderr = os.fdopen(out[0]), os.fdopen(err[0])
        return Process(int(self._answer()), stdout, stderr, lambda: int(self._answer()))

    def _answer(self) -> bytes:
        answer = self.connection.recv(64)
        if not answer:
            self.stop()
            raise RuntimeError("the server has ended")
        return answer

    def run(self, *words: object, timeout: float = 300, **options: Any) -> Done:
        return self.start(*words, **options).finish(timeout)


def _after(seconds: float, pid: int) -> Any:
    """Kill a process after some seconds. The returned function cancels this, and returns whether it was killed."""
    import threading

    killed = []

    def kill() -> None:
        killed.append(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()

    def cancel() -> bool:
        timer.cancel()
        return bool(killed)

    return cancel


def _read_both(*files: Any) -> list[str]:
    import threading

    texts: list[str] = [""] * len(files)

    def read(i: int) -> None:
        with files[i]:
            texts[i] = files[i].read()

    readers = [threading.Thread(target=read, args=[i], daemon=True) for i in range(len(files))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return texts


def _serve(connection: socket.socket) -> list[str]:
    """Handle requests. Return only in a fork, with the arguments to run there."""
    while True:
        message, fds, _, _ = socket.recv_fds(connection, 1, 3)
        if not message:
            os._exit(0)
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            request = json.load(file)
        if request["inside"]:
            connection.send(str(os.getpid()).encode())
            status = _inside(request["words"], fds[1:])
            connection.send(str(status).encode())
            continue
        child = os.fork()
        if child == 0:
            connection.close()
            _redirect(fds[1:])
            os.chdir(request["cwd"])
            os.environ.update(request["env"])
            sys.orig_argv[:] = [sys.executable, *request["words"]]
            exec(request["first"], {"__name__": "first"})
            return request["words"]
        for fd in fds[1:]:
            os.close(fd)
        connection.send(str(child).encode())
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _redirect(fds: list[int]) -> None:
    for fd, of in zip(fds, (1, 2), strict=True):
        os.dup2(fd, of)
        os.close(fd)


def _inside(words: list[str], fds: list[int]) -> int:
    """Run a program in this process, with its own standard files."""
    import traceback

    kept, here = [os.dup(1), os.dup(2)], os.getpid()
    _redirect(fds)
    try:
        exec(compile(words[words.index("-c") + 1], "<string>", "exec"), {"__name__": "__main__"})
        return 0
    except BaseException:
        traceback.print_exc()
        if os.getpid() != here:  # a child that did not end normally
            os._exit(1)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _redirect(kept)


# The program of a fork. It has the name of runpy's frames, which `goptim run` hides from tracebacks.
_AS_MAIN = """
import importlib.machinery, os, runpy, sys, types
words = list(sys.argv)
if words[0] == "-m":
    sys.argv[:] = ["-m", *words[2:]]
    sys.path[0] = os.getcwd()
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    runpy._run_module_as_main(words[1])
elif os.path.isdir(words[0]):
    sys.path[0] = os.path.abspath(words[0])
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    runpy._run_module_as_main("__main__", alter_argv=False)
else:
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        sys.path[0] = ""
        program, path = words[1], "<string>"
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(words[0]))
        main.__file__ = path = os.path.abspath(words[0])
        with open(path, "rb") as file:
            program = file.read()
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    exec(compile(program, path, "exec", dont_inherit=True), vars(main))
"""


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # set for the tests only
    sys.modules["triton"] = None  # type: ignore[assignment]  # at exit it would report what a frozen heap keeps
    import torch

    torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()  # it imports torch's compiler
    exec(sys.argv[2])
    gc.freeze()  # a garbage collection in a fork would copy the memory of existing objects
    assert "goptim._core" not in sys.modules
    sys.argv[:] = _serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(compile(_AS_MAIN, "<frozen runpy>", "exec"), {"__name__": "runpy"})
