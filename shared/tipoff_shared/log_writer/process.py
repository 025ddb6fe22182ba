"""Reads the output of many processes from named pipes, and writes it into files that never outgrow their limit.

client.py runs this file as a script with few imports, so that it starts in 20 ms and stays small:

    python -I -S process.py MAX_BYTES RATE

.NAME.pipe          a named pipe in the working directory or in one of its subdirectories (two levels), made by the
                    client; NAME is the log beside it
.log_writer.lock    held by the one writer of the directory; its pid and start

* A log and its previous part (NAME.1) hold at most MAX_BYTES each, at every moment.
* Of a process that writes more than RATE bytes a second for long, the rest is read, dropped and counted, and the log
  says how much is missing. The newest part is kept, because it may be a crash's last words.
* A process holds both ends of its pipe, so it never gets SIGPIPE: while no writer runs, its output waits in the pipe.
  A writer that is killed loses what it had in hand, one read at most.
* Standard input is a socket to the owner, who sends the paths of new pipes. The owner is told `+PATH` when a pipe is
  open here (until then it keeps the pipe open, else an output that ends is lost), and `-PATH` when the last process of
  a pipe has ended and everything is in the log. Each message ends with a zero byte. When the owner is gone, this
  process serves the pipes that are left, and ends with the last of them. A later writer of the directory replaces it.
"""

import errno
import fcntl
import os
import select
import signal
import stat
import sys
import time

CHUNK = 256 * 1024
"""Bytes of one read; each process with output gets one read per round."""
TAIL = 8192
"""Bytes of dropped output that are kept: the newest."""
REST = 0.002
"""Seconds for which a process that loses output anyway is not read, so that it costs little to read what is dropped."""
OWNER = 0
"""The descriptor of the socket to the owner."""
LOCK = ".log_writer.lock"
DEPTH = 2
"""Levels of subdirectories that are searched for pipes."""
HANDOVER = 2.0
"""Seconds that an earlier writer has to end before it is killed."""


class BoundedLog:
    """One log of at most `max_bytes`, and its previous part. `rate`: bytes a second that it takes for long; `max_bytes`
    more at once after a pause. `now` is in seconds of any clock. Raises no `OSError`: what cannot be written is
    dropped and counted."""

    def __init__(self, path: str, max_bytes: int, rate: float) -> None:
        self.path = path
        self.dropped = 0
        self.max_bytes = max_bytes
        self._rate = rate
        self._again = min(rate, max_bytes)
        self._tail_limit = min(TAIL, max_bytes // 2)
        self._allowed = float(max_bytes)
        self._at: float | None = None
        self._tail = b""
        self._why = ""
        self._fd = -1
        self._size = 0
        self._at_line_start = True

    def take(self, data: bytes, now: float) -> None:
        """Write `data`, or drop it where it is too much. `data` is at most `max_bytes` long."""
        self._refill(now)
        if self.dropped or self._tail:
            self._drop(data)
        elif len(data) > self._allowed:
            self._why = f"more than {self._rate:.0f} bytes a second"
            self._drop(data)
        else:
            self._allowed -= len(data)
            if left := self._write(data):
                self._drop(left)

    @property
    def due(self) -> float | None:
        """When to call `resume`; None while nothing was dropped."""
        if not self._tail or self._at is None:
            return None
        return self._at + max(0.0, self._again - self._allowed) / self._rate

    def resume(self, now: float) -> None:
        """Write how much was dropped and its newest part, and take output again, if it is time."""
        self._refill(now)
        if self._tail and self._allowed >= self._again:
            self._account()

    def close(self) -> None:
        """Write what is left to say, and close the file. Idempotent."""
        if self._tail:
            self._account()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._allowed = min(self.max_bytes, self._allowed + (now - self._at) * self._rate)
        self._at = now

    def _drop(self, data: bytes) -> None:
        self.dropped += len(data)
        self._tail = (
            (self._tail + data)[-self._tail_limit :]
            if len(data) < self._tail_limit
            else data[-self._tail_limit :]
        )

    def _account(self) -> None:
        tail, missing = self._tail, self.dropped - len(self._tail)
        self._tail, self.dropped = b"", 0
        note = b"" if self._at_line_start else b"\n"
        if missing > 0:
            note += f"[tipoff: {missing} bytes of output are missing here: {self._why}]\n".encode()
        self._allowed = max(0.0, self._allowed - len(note) - len(tail))
        left = self._write(note + tail)
        if len(left) > len(tail):  # nothing of the tail is written, and perhaps not all of the note
            self.dropped, left = missing, tail
        if left:
            self._drop(left)

    def _write(self, data: bytes) -> bytes:
        """Write `data`; returns what could not be written."""
        try:
            if self._fd < 0:
                self._open()
            if self._size + len(data) > self.max_bytes:
                self._rotate()
            while data:
                written = os.write(self._fd, data)
                self._size += written
                self._at_line_start = data[written - 1 : written] == b"\n"
                data = data[written:]
        except OSError as exc:
            self._why = f"it could not be written: {exc.strerror}"
            self._allowed = 0.0  # so it is tried again in a while
        return data

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size > self.max_bytes:  # an earlier program wrote it
            os.ftruncate(self._fd, 0)
            self._size = 0

    def _rotate(self) -> None:
        try:
            os.rename(self.path, self.path + ".1")
        except FileNotFoundError:
            pass  # somebody has removed it
        except OSError:
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = -1
        self._open()


class Source:
    """One pipe and the log it goes into."""

    def __init__(self, pipe: str, fd: int, log: BoundedLog) -> None:
        self.pipe = pipe
        self.fd = fd
        self.log = log
        self.rests_until = 0.0
        self._chunk = min(CHUNK, log.max_bytes)

    def read(self, now: float) -> bool:
        """Take one read of output to the log. False at the end: no process can write into the pipe any more."""
        try:
            data = os.read(self.fd, self._chunk)
        except BlockingIOError:
            return True
        if not data:
            return False
        self.log.take(data, now)
        if self.log.dropped and len(data) >= self._chunk // 4:
            self.rests_until = now + REST
        return True

    def close(self) -> None:
        """Remove the pipe, unless another one has its name by now."""
        try:
            if os.stat(self.pipe).st_ino == os.fstat(self.fd).st_ino:
                os.unlink(self.pipe)
        except OSError:
            pass
        os.close(self.fd)


def log_of(pipe: str) -> str:
    """The log that a pipe's output goes into."""
    directory, name = os.path.split(pipe)
    return os.path.join(directory, name.removeprefix(".").removesuffix(".pipe"))


def open_pipe(pipe: str) -> int:
    """A descriptor to read from it without waiting. Raises `OSError`."""
    fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a named pipe", pipe)
    return fd


def find_pipes(directory: str = "", depth: int = DEPTH) -> list[str]:
    """The paths that look like pipes in a directory and in `depth` levels of subdirectories; "" is the working
    directory."""
    found: list[str] = []
    try:
        names = os.listdir(directory or ".")
    except OSError:  # a file, or gone
        return found
    for name in names:
        path = os.path.join(directory, name)
        if name.startswith(".") and name.endswith(".pipe"):
            found.append(path)
        elif depth:
            found += find_pipes(path, depth - 1)
    return found


class Writer:
    """All pipes of the working directory; its paths are relative, so the directory may be renamed."""

    def __init__(self, max_bytes: int, rate: float, wake: int) -> None:
        self._max_bytes = max_bytes
        self._rate = rate
        self._wake = wake
        self._sources: dict[int, Source] = {}
        self._new: set[int] = set()
        """Pipes to read once without `poll`, which does not report the end of one whose processes ended before it was
        opened here."""
        self._owner_lives = True
        self._received = b""

    def run(self) -> None:
        """Serve until SIGTERM, or until the owner and all processes are gone."""
        for pipe in find_pipes():
            self._add(pipe)
        while self._owner_lives or self._sources:
            ready = self._wait()
            if self._wake in ready:
                break
            if OWNER in ready:
                self._hear()
            now = time.monotonic()
            for fd in ready:
                source = self._sources.get(fd)
                if source is not None and not source.read(now):
                    self._end(source)
            for source in self._sources.values():
                source.log.resume(now)
        for source in self._sources.values():
            source.log.close()

    def _wait(self) -> set[int]:
        """The descriptors with something to read, after waiting for the first of them or for what is due."""
        now = time.monotonic()
        new, self._new = self._new, set()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._owner_lives:
            poll.register(OWNER, select.POLLIN)
        until: list[float] = []
        for fd, source in self._sources.items():
            if source.rests_until > now:
                until.append(source.rests_until)
            else:
                poll.register(fd, select.POLLIN)
            if (due := source.log.due) is not None:
                until.append(due)
        timeout = max(1, int((min(until) - now) * 1000 + 0.999)) if until else None
        return new | {fd for fd, _ in poll.poll(0 if new else timeout)}

    def _hear(self) -> None:
        try:
            data = os.read(OWNER, 65536)
        except OSError:
            data = b""
        self._owner_lives = bool(data)
        *pipes, self._received = (self._received + data).split(b"\0")
        for pipe in pipes:
            self._add(os.fsdecode(pipe))

    def _add(self, pipe: str) -> None:
        try:
            fd = open_pipe(pipe)
        except OSError:  # its process has ended, or somebody has removed it
            return
        self._tell(b"+", pipe)
        if any(os.path.samestat(os.fstat(known), os.fstat(fd)) for known in self._sources):
            os.close(fd)  # the search of the directory has found it already
            return
        path = log_of(pipe)
        # A process that was started again may share its log with the last output of the one before.
        logs = [source.log for source in self._sources.values() if source.log.path == path]
        log = logs[0] if logs else BoundedLog(path, self._max_bytes, self._rate)
        self._sources[fd] = Source(pipe, fd, log)
        self._new.add(fd)

    def _end(self, source: Source) -> None:
        del self._sources[source.fd]
        if all(other.log is not source.log for other in self._sources.values()):
            source.log.close()
        source.close()
        self._tell(b"-", source.pipe)

    def _tell(self, what: bytes, pipe: str) -> None:
        try:
            if self._owner_lives:
                os.write(OWNER, what + os.fsencode(pipe) + b"\0")
        except OSError:
            self._owner_lives = False


def take_over() -> None:
    """Become the working directory's writer, after an earlier one has ended. Raises `OSError`."""
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    began = time.monotonic()
    signalled: set[int] = set()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            late = time.monotonic() - began > HANDOVER
            end_holder(os.pread(lock, 100, 0), signal.SIGKILL if late else signal.SIGTERM, signalled)
            time.sleep(0.005)
    os.pwrite(lock, f"{os.getpid()} {start_of(os.getpid())}".ljust(40).encode(), 0)  # in one piece


def end_holder(holder: bytes, number: int, signalled: set[int]) -> None:
    """Signal the process that holds the lock, once by each signal."""
    pid, _, start = holder.decode(errors="replace").strip().partition(" ")
    if pid.isdigit() and number not in signalled and start_of(int(pid)) == start:
        signalled.add(number)
        try:  # noqa: SIM105 # contextlib takes 5 ms to import
            os.kill(int(pid), number)
        except OSError:
            pass


def start_of(pid: int) -> str:
    """When a process started, in clock ticks since boot: with it, a pid means one process. "" where that is unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return "" if not os.path.exists("/proc/self") else "gone"


def main(arguments: list[str]) -> None:
    """Serve the working directory."""
    max_bytes, rate = int(arguments[0]), float(arguments[1])
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # it arrives through `wake`
    take_over()
    Writer(max_bytes, rate, wake).run()


if __name__ == "__main__":
    main(sys.argv[1:])
