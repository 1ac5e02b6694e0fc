"""Progress and cancellation over the wire."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.server import Server
from tessera.errors import Cancelled, InvalidInput, TimedOut, UnknownJob
from tessera_client import AsyncClient, Client, JobStatus, Result
from tessera_client.messages import job_call
from tests.samples.jobs import ENDLESS, in_company, unique, wait_for_step
from tests.samples.waiting import again_until, comes


def long_job(pool: ThreadPoolExecutor, client: Client, job_id: str) -> Future[Result]:
    return pool.submit(client.generate, "a red circle", job_id=job_id, seed=1, **ENDLESS)


def test_status_follows_a_job(client: Client) -> None:
    job, short = unique("follow"), unique("short")
    with ThreadPoolExecutor(1) as pool:
        future = long_job(pool, client, job)
        status = wait_for_step(client, job, 3)
        assert (status.phase, status.total) == ("denoising", 1000)
        later = wait_for_step(client, job, status.step + 1)
        assert later.seconds > status.seconds
        client.cancel(job)
        with pytest.raises(Cancelled):
            future.result()
    assert client.generate("a red circle", job_id=short, steps=20).info.job_id == short
    assert client.status(short).phase == "done"
    assert client.status(short).step == 20


def test_a_cancelled_job_is_gone_within_two_ticks(client: Client) -> None:
    job = unique("victim")
    with ThreadPoolExecutor(1) as pool:
        future = long_job(pool, client, job)
        wait_for_step(client, job, 3)
        answer = client.cancel(job)  # read after the flag was raised
        assert answer.cancelled
        with pytest.raises(Cancelled, match=rf"job {job} was cancelled after \d+ steps"):
            future.result()
        ended = client.status(job)
    assert ended.phase == "cancelled"
    assert ended.step <= answer.step + 2


def test_a_cancelled_slot_is_used_again(http_client: Client) -> None:
    with ThreadPoolExecutor(9) as pool:
        fills, last = [unique("fill") for _ in range(8)], unique("ninth")
        filling = [long_job(pool, http_client, name) for name in fills]
        for name in fills:
            wait_for_step(http_client, name, 1)
        ninth = pool.submit(http_client.generate, "a", job_id=last, steps=4, priority=3)
        wait_for_step(http_client, last, 0)
        wait_for_step(http_client, fills[1], http_client.status(fills[1]).step + 3)
        assert http_client.status(last).phase == "queued"
        http_client.cancel(fills[0])
        result = ninth.result(timeout=300)
        assert not any(f.done() for f in filling[1:])
        for name in fills[1:]:
            http_client.cancel(name)
        for future in filling:
            with pytest.raises(Cancelled):
                future.result()
    assert result.info.mean_batch > 4


def test_a_short_job_overtakes_long_ones_that_have_all_slots(http_client: Client) -> None:
    """Of the same priority: it waits for little, and long for that."""
    with in_company(http_client, 8, priority=2):
        assert http_client.generate("a", steps=4).info.ticks == 4


def test_a_queued_job_can_be_cancelled(http_client: Client) -> None:
    with ThreadPoolExecutor(9) as pool:
        fills, last = [unique("full") for _ in range(8)], unique("queued")
        filling = [long_job(pool, http_client, name) for name in fills]
        for name in fills:
            wait_for_step(http_client, name, 1)
        queued = pool.submit(http_client.generate, "a", job_id=last, steps=2, priority=3)
        wait_for_step(http_client, last, 0)
        assert http_client.cancel(last).phase == "queued"
        http_client.cancel(fills[0])
        with pytest.raises(Cancelled):
            queued.result(timeout=300)
        for name in fills[1:]:
            http_client.cancel(name)
        for future in filling:
            with pytest.raises(Cancelled):
                future.result()
    assert http_client.status(last).step == 0


def test_unknown_jobs_and_actions(client: Client) -> None:
    with pytest.raises(UnknownJob, match="JOB_ID is 'nobody'"):
        client.status("nobody")
    with pytest.raises(UnknownJob):
        client.cancel("nobody")
    with pytest.raises(InvalidInput, match="ACTION is 'stop'; accepted: status, cancel"):
        client._ask(job_call("stop", "nobody"))


def test_a_job_id_is_taken_while_its_job_runs(http_client: Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = long_job(pool, http_client, "twice")
        wait_for_step(http_client, "twice", 1)
        with pytest.raises(InvalidInput, match="JOB_ID is 'twice'"):
            http_client.generate("a", job_id="twice")
        http_client.cancel("twice")
        with pytest.raises(Cancelled):
            first.result()
    assert http_client.generate("a", job_id="twice", steps=1).info.job_id == "twice"


def test_a_client_that_times_out_cancels_its_job(client: Client) -> None:
    """On a busy machine the client may be through before the server knows of the job at all. Then
    there was nothing to cancel, and the server drops what nobody waits for.
    """

    def timed_out() -> str:
        job = unique("late")
        with pytest.raises(TimedOut):
            client.generate("a red circle", job_id=job, timeout=0.5, **ENDLESS)
        if not is_known(client, job):
            return ""
        comes(lambda: client.status(job).ended)
        assert client.status(job).phase in ("cancelled", "failed")
        return client.status(job).phase

    again_until(timed_out, lambda phase: phase == "cancelled")


def is_known(client: Client, job: str) -> bool:
    try:
        client.status(job)
    except UnknownJob:
        return False
    return True


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_async_client(server: Server, protocol: str) -> None:
    job = unique("task")

    async def session() -> None:
        seen: list[JobStatus] = []
        async with (
            asyncio.timeout(300),
            AsyncClient(getattr(server, protocol), timeout=300) as client,
        ):
            met = False
            while not (met and seen):  # by chance, and soon
                results = await asyncio.gather(
                    *(
                        client.generate("a", seed=i, steps=60, on_progress=seen.append)
                        for i in range(3)
                    )
                )
                assert [r.info.seed for r in results] == [0, 1, 2]
                met = max(r.info.mean_batch for r in results) > 1
            task = asyncio.create_task(client.generate("a", job_id=job, **ENDLESS))
            while True:
                await asyncio.sleep(0.05)
                try:
                    if (await client.status(job)).step > 0:
                        break
                except UnknownJob:
                    continue
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while (await client.status(job)).phase != "cancelled":
                await asyncio.sleep(0.05)
            assert (await client.health()).ready
        assert {s.total for s in seen} == {60}

    asyncio.run(session())


class TestCommand:
    """`tessera` against the real server."""

    def run(self, server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "tessera"), *arguments]
        environment = {"TESSERA_URL": server.grpc, "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    def test_generate(self, server: Server, tmp_path: Path) -> None:
        out = tmp_path / "o.png"
        done = self.run(server, "generate", "a red circle", "-o", str(out), "--steps=3", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 3
        assert out.read_bytes().startswith(b"\x89PNG")

    def test_bad_input(self, server: Server) -> None:
        done = self.run(server, "generate", "a", "--steps=0")
        assert done.returncode == 2
        assert "STEPS is 0; accepted: an integer from 1 to 1000" in done.stderr

    def test_health(self, server: Server) -> None:
        assert self.run(server, "health").returncode == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_cancels(
        self, server: Server, http_client: Client, tmp_path: Path, number: signal.Signals
    ) -> None:
        # What a shell starts in the background, as this may have been, ignores the signal.
        command = ["env", "--default-signal=INT", str(Path(sys.executable).parent / "tessera")]
        command += ["generate", "a", "--json"]
        command += ["--steps=1000", "--scheduler=heun", "-o", str(tmp_path / "o.png")]
        command += ["--url", server.http, "--job-id", job := unique("interrupted")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_for_step(http_client, job, 1)
            process.send_signal(number)
            _, errors = process.communicate(timeout=300)
        assert process.returncode == 130, errors
        assert b"cancelled" in errors
        status = again_until(lambda: http_client.status(job), lambda status: status.ended)
        assert status.phase == "cancelled"
        assert status.step < 1000
