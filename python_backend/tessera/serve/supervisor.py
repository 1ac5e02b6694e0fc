"""Runs tritonserver and looks after it: waits until it is ready, reloads models whose process has
died, stops it.

Triton never restarts a Python model's process; every later request to that model fails while the
server still says it is ready. So the model processes are watched (their ends wake us at once) and a
dead one's model is unloaded and loaded again through the repository API, during which it is not
ready. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

from tessera.serve.ends import Ends
from tessera.serve.hangs import Hangs
from tessera.serve.idle import LOOK_S
from tessera.serve.log import pass_on
from tessera.serve.repository import LOAD_S, READY, Repository
from tessera.serve.retired import Retired
from tessera.serve.serving import SERVING
from tessera.serve.silence import Silence
from tessera.serve.starts import Starts
from tessera.serve.undertaker import Undertaker
from tessera.serve.wake import Wake
from tessera.shared.processes import die_with_parent, identity, lives, model_processes

_RESCAN_S = 0.5
_STOP_S = 60.0
_LOG_S = 5.0
_LONGEST_WAIT_S = 30.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class _Load:
    """A model that is to be loaded again: when it ended, when to load it, how often that failed."""

    since: float
    at: float
    failures: int = 0


@dataclass
class Supervisor:
    """One running tritonserver.

    Attributes:
        command, environment: how it is started.
        repository: through which models are loaded again.
        say: called with every line worth telling the operator, from several threads.
        drain: lets requests end before the server is stopped; returns at once when what it is given
            says so.
        patient: whether tritonserver ends by itself then, which takes long.
        log: called with every line that it prints on its standard error; without one, the server
            prints where this process does.
        retired: processes of models that have been loaded again.
        starts: looks for processes that are stuck in their start.
        hangs: looks for processes that hang later.
        silence: looks whether tritonserver itself hangs.
        wake: set by signals.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    repository: Repository
    say: Callable[[str], None]
    drain: Callable[[Callable[[], bool]], None] = lambda hurry: None
    patient: bool = False
    log: Callable[[str], None] | None = None
    retired: Retired = field(default_factory=Retired)
    starts: Starts = field(default_factory=lambda: Starts(lambda line: None))
    hangs: Hangs = field(default_factory=lambda: Hangs(lambda line: None))
    silence: Silence = field(default_factory=lambda: Silence(lambda line: None))
    wake: Wake = field(default_factory=Wake)
    _process: subprocess.Popen[bytes] | None = None
    _undertaker: Undertaker | None = None
    _ends: Ends = field(default_factory=Ends)
    _family: dict[int, str] = field(default_factory=dict)  # ids of all its processes: see `stop`
    _deaths: dict[str, list[float]] = field(default_factory=dict)
    _due: dict[str, _Load] = field(default_factory=dict)
    _workers: dict[str, threading.Thread] = field(default_factory=dict)  # model -> who reloads it
    _signals: int = 0  # that asked for the end
    _serving: bool = False
    _stopping: bool = False
    _reader: threading.Thread | None = None  # of its log

    @property
    def interrupted(self) -> bool:
        """Whether a signal has asked for the end."""
        return self._signals > 0

    @property
    def _over(self) -> bool:
        """Whether no model is wanted any more."""
        return self.interrupted or self._stopping

    def interrupt(self) -> None:
        """Ask for the end, as a signal does; at once, if nobody is being served yet."""
        self._signals += 1
        self.wake.set()
        if not self._serving:
            self._kill()

    def wait_interrupted(self, seconds: float) -> bool:
        """Wait so long for a signal; whether there was one, now or before."""
        if not self.interrupted:
            self.wake.wait(seconds)
        return self.interrupted

    def start(self) -> None:
        """Start the server in a session of its own. Signals are for this object from now on."""
        for number in _ENDING:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: self.interrupt())
        self._process = subprocess.Popen(
            list(self.command),
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE if self.log else None,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
        self._undertaker = Undertaker.of(self._process.pid)
        if self.log and self._process.stderr:
            reading = (self._process.stderr, self.log)
            self._reader = threading.Thread(target=pass_on, args=reading, daemon=True)
            self._reader.start()
        if self.interrupted:  # before there was anything to end
            self._kill()

    def wait_ready(
        self, timeout: float, waiting: Callable[[float], None] = lambda seconds: None
    ) -> bool:
        """Wait until the server is ready; False if it ended or did not get ready in time."""
        began = looked = time.monotonic()
        while (now := time.monotonic()) - began < timeout:
            if self._exit_code() is not None or self.interrupted:
                return False
            self._ends.count(self._running())
            if self.repository.is_up():
                return True
            waiting(now - began)
            if now - looked >= LOOK_S:  # not oftener: it takes a CPU from those that start
                looked = now
                if self._stalled():
                    return False
            time.sleep(0.1)
        return False

    def beside(self, work: Callable[[], None]) -> None:
        """Do something that waits for the server, and end the processes that hang meanwhile: it
        raises what `work` does when one that it waited for has been ended.
        """
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            while not wait([working], _RESCAN_S).done:
                self.hangs.end(self._running())
        working.result()

    def watch(self) -> int:
        """Look after the server until it ends or a signal asks for its end; returns its exit
        status, 0 behind a signal.
        """
        self._serving = True
        with selectors.DefaultSelector() as selector:
            selector.register(self.wake.descriptor, selectors.EVENT_READ)
            while self._exit_code() is None and not self.interrupted:
                self._rescan(selector)
                for key, _ in selector.select(_RESCAN_S):
                    self._ends.note(selector, key.data)
                self._examine(selector)
                self._load_due()
        self._ends.close()
        code = self._exit_code()
        if code is not None and not self.interrupted:
            return code
        self.repository.unload(SERVING)
        self.drain(lambda: self._signals > 1 or self._exit_code() is not None)
        if self.patient:
            self._let_end()
        return 0

    def stop(self) -> None:
        """Kill the server and everything it started; returns when nothing is left.

        Nobody is being served any more, and nothing is in a process that is wanted later. To unload
        the models first would take a second for each process.
        """
        process = self._process
        if process is None:
            return
        self._stopping = True
        self._running()
        left = [identity(process.pid), *self._family.values()]
        self._kill()
        process.wait()
        until = time.monotonic() + _STOP_S
        while any(map(lives, left)) and time.monotonic() < until:
            time.sleep(0.01)
        if self._undertaker:
            self._undertaker.dismiss()
        if self._reader:
            self._reader.join(_LOG_S)
        for thread in self._workers.values():
            thread.join(_STOP_S)  # its question has ended with the server
        self._process = None

    def _let_end(self) -> None:
        process = self._process
        assert process is not None, "start() comes first"
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.say("tritonserver did not stop in time; killing it")

    def _kill(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def _pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    def _running(self) -> dict[int, str]:
        running = model_processes(self._pid)
        for pid in running.keys() - self._family.keys():
            self._family[pid] = identity(pid)
        return running

    def _current(self, running: Mapping[int, str]) -> dict[int, str]:
        """Those that get requests."""
        return {pid: model for pid, model in running.items() if pid not in self.retired}

    def _state(self, model: str) -> str | None:
        """See `Repository.state`; does not wait for a server that does not answer anyway."""
        return None if self.silence.owing else self.repository.state(model)

    def _exit_code(self) -> int | None:
        assert self._process is not None, "start() comes first"
        return self._process.poll()

    def _rescan(self, selector: selectors.BaseSelector) -> None:
        """Look at all model processes."""
        running = self._running()
        current = self._current(running)
        waits = self.starts.look(current, self._state)
        if self.silence.hangs(self._pid, running, self.repository.answers) or waits:
            self._kill()
        self.hangs.end(running)
        busy = [m for m in self._workers if self._at_work(m)]
        self.retired.end(running, {*busy, *self._due, *self._ends.suspects})
        self._ends.look(selector, current)

    def _examine(self, selector: selectors.BaseSelector) -> None:
        """Heal the models of which a process has ended though Triton believes them to be ready;
        later if Triton gives no answer now, or the model is being reloaded.
        """
        for model in list(self._ends.suspects):
            if self._over or self._exit_code() is not None:
                return
            if self._at_work(model):
                continue
            if self._ends.complete(model, self._current(self._running())):
                self._ends.suspects.remove(model)  # it has been loaded again since
                continue
            state = self._state(model)
            if state is None:
                continue
            self._ends.forget(model)
            if state == READY:  # not so when an operator has unloaded it
                for sibling in self._ends.leave(selector, model):
                    self.retired.add(sibling)
                self._heal(model)

    def _heal(self, model: str) -> None:
        """Unload a model whose process has died, and have it loaded again; the wait before that
        grows when it happens again and again.
        """
        now = time.monotonic()
        recent = [t for t in self._deaths.get(model, []) if now - t < 60]
        self._deaths[model] = [*recent, now]
        self.say(f"a process of model {model} has ended; reloading the model")
        delay = min(2.0 ** (len(recent) - 2), _LONGEST_WAIT_S) if len(recent) >= 3 else 0.0
        if delay:
            self.say(
                f"model {model} ended {len(recent) + 1} times in a minute; waiting {delay:.0f} s"
            )
        self._begin(self._unload, model, _Load(now, now + delay))

    def _load_due(self) -> None:
        """Begin to load the models whose time has come."""
        for model, load in list(self._due.items()):
            if self._at_work(model) or time.monotonic() < load.at:
                continue
            if self._over or self._exit_code() is not None:
                return
            del self._due[model]
            self._begin(self._load, model, load)

    def _begin(self, work: Callable[[str, _Load], None], model: str, load: _Load) -> None:
        """In a thread of its own: a large model takes minutes, and others may end meanwhile."""
        self._workers[model] = threading.Thread(target=work, args=(model, load), daemon=True)
        self._workers[model].start()

    def _at_work(self, model: str) -> bool:
        return model in self._workers and self._workers[model].is_alive()

    def _unload(self, model: str, load: _Load) -> None:
        """Unload a model, and load it now or when its time comes. Triton waits with that while an
        ensemble's other member is being loaded.
        """
        self.repository.unload(model, LOAD_S)
        if time.monotonic() < load.at or self._over:
            self._due[model] = load
        else:
            self._load(model, load)

    def _load(self, model: str, load: _Load) -> None:
        """Load a model; one that fails is tried again later and later."""
        if self.repository.load(model):
            self.say(f"model {model} is back after {time.monotonic() - load.since:.1f} s")
        elif not self._over:
            delay = min(2.0**load.failures, _LONGEST_WAIT_S)
            again = time.monotonic() + delay
            self._due[model] = _Load(load.since, again, load.failures + 1)
            self.say(
                f"model {model} could not be loaded again, see tritonserver's log; once more "
                f"in {delay:.0f} s"
            )

    def _stalled(self) -> bool:
        """Whether nothing goes on in the server's start."""
        if not self.starts.stalled((self._pid, *self._running())):
            return False
        self.say(f"nothing has happened for {self.starts.limit:.0f} s")
        return True
