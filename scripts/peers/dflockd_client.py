"""Puts Python's dflockd-client against a dflockd server: every check runs with its async and its sync half.

Usage: dflockd_client.py BINARY [PART-OF-A-CHECK'S-NAME...]. Each setting of the server gets a process of its own on a
free port. Ends with a line `N passed, N failed`, and with exit code 1 when a check failed.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dflockd_client as d

CHECK_LIMIT_S = 60
TOKEN = "a-token-for-the-tests"
CHECKS = []


def check(*flags, **setting):
    """Registers a check, with the flags of the server that it is for."""

    def register(function):
        CHECKS.append((function, flags, setting))
        return function

    return register


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


class Server:
    """One server process on a free port."""

    def __init__(self, binary, flags, tmp):
        self.tls = tmp / "cert.pem" if "--tls-cert" in flags else None
        self.log = tmp / "server.log"
        env = {k: v for k, v in os.environ.items() if not k.startswith("DFLOCKD_")}
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [binary, "--host", "127.0.0.1", "--port", str(self.port), *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        self.await_listening()

    def await_listening(self):
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            expect(self.process.poll() is None, f"the server exits with {self.process.returncode}")
            expect(time.monotonic() < deadline, "the server does not listen within 10 s")
            time.sleep(0.02)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def context(self):
        return ssl.create_default_context(cafile=str(self.tls)) if self.tls else None


class Api:
    """One half of the client (async, or sync in threads) behind one set of coroutines."""

    def __init__(self, name, server):
        self.name, self.server, self.is_async = name, server, name == "async"
        self.module = d._async if self.is_async else d._sync
        self.opened = []

    async def run(self, function, *args, **kwargs):
        if self.is_async:
            return await function(*args, **kwargs)
        return await asyncio.to_thread(function, *args, **kwargs)

    async def __call__(self, command, *args, **kwargs):
        """A free function of the client, by name."""
        return await self.run(getattr(self.module, command), *args, **kwargs)

    def lock(self, key, **settings):
        return self._remember(self.module.DistributedLock, key, settings)

    def semaphore(self, key, limit, **settings):
        return self._remember(self.module.DistributedSemaphore, key, {"limit": limit, **settings})

    def _remember(self, kind, key, settings):
        settings = {"servers": [("127.0.0.1", self.server.port)], "ssl_context": self.server.context(), **settings}
        made = kind(key, **settings)
        self.opened.append(made)
        return made

    async def conn(self, server=None):
        server = server or self.server
        conn = await self("open_conn", "127.0.0.1", server.port, ssl_context=server.context(), connect_timeout_s=5)
        self.opened.append(conn)
        return conn

    async def close(self, thing):
        await self.run(getattr(thing, "aclose", None) or thing.close)

    async def close_all(self):
        for thing in self.opened:
            with contextlib.suppress(Exception):
                await self.close(thing)


@contextlib.asynccontextmanager
async def failing(kind, doing):
    """What is within must raise `kind`, and no subclass or superclass of it."""
    try:
        yield
    except Exception as error:
        expect(type(error) is kind, f"{doing}: {type(error).__name__} ({error}) instead of {kind.__name__}")
        return
    raise AssertionError(f"{doing}: no {kind.__name__}")


async def until_waiting(api, key, count):
    """Returns once the server counts `count` waiters on the key."""
    conn, deadline = await api.conn(), time.monotonic() + 10
    while time.monotonic() < deadline:
        stats = await api("stats", conn)
        if any(e["key"] == key and e["waiters"] == count for e in stats["locks"] + stats["semaphores"]):
            return await api.close(conn)
        await asyncio.sleep(0.02)
    raise AssertionError(f"the server never counts {count} waiters on {key!r}")


@check()
async def a_lock_excludes_and_its_fence_grows(api):
    first, second = api.lock("k"), api.lock("k", acquire_timeout_s=0)
    expect(await api.run(first.acquire), "the first acquire is refused")
    expect(first.lease == 33, f"the default lease is {first.lease}")
    expect(len(first.token) == 32 and first.token == first.token.lower(), "the token is not 32 lower-case digits")
    before = d.fence_from_token(first.token)
    expect(not await api.run(second.acquire), "two hold one lock")
    expect(await api.run(first.release), "the release fails")
    expect(await api.run(second.acquire), "the lock stays busy after its release")
    expect(d.fence_from_token(second.token) > before, "the fence does not grow")
    expect(await api.run(second.release), "the second release fails")


@check()
async def waiters_are_served_in_order(api):
    conn, order = await api.conn(), []
    token, _ = await api("acquire", conn, "q", 0)

    async def wait(number):
        lock = api.lock("q", acquire_timeout_s=20)
        expect(await api.run(lock.acquire), f"waiter {number} is refused")
        order.append(number)
        expect(await api.run(lock.release), f"waiter {number} cannot release")

    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(wait(number)))
        await until_waiting(api, "q", number + 1)
    await api("release", conn, "q", token)
    await asyncio.gather(*tasks)
    expect(order == sorted(order), f"served in the order {order}")


@check()
async def a_semaphore_admits_its_limit(api):
    slots = [api.semaphore("s", 2, acquire_timeout_s=0) for _ in range(3)]
    got = [await api.run(s.acquire) for s in slots]
    expect(got == [True, True, False], f"of three acquires on a limit of 2: {got}")
    expect(await api.run(slots[0].release), "the release fails")
    expect(await api.run(slots[2].acquire), "the freed slot is refused")


@check()
async def two_phases_queue_and_wait(api):
    for make in (lambda **k: api.lock("two", **k), lambda **k: api.semaphore("two-s", 1, **k)):
        first, second = make(), make()
        expect(await api.run(first.enqueue) == "acquired", "an enqueue on a free key is not `acquired`")
        expect(await api.run(first.wait), "the wait after `acquired` fails")
        expect(await api.run(second.enqueue) == "queued", "an enqueue on a busy key is not `queued`")
        waiting = asyncio.create_task(api.run(second.wait, 20))
        expect(await api.run(first.release), "the release fails")
        expect(await waiting, "the wait is not granted")
        expect(await api.run(second.release), "the waiter's release fails")


@check()
async def a_wait_times_out(api):
    first, second = api.lock("late"), api.lock("late")
    expect(await api.run(first.acquire), "the acquire is refused")
    expect(await api.run(second.enqueue) == "queued", "an enqueue on a busy key is not `queued`")
    expect(not await api.run(second.wait, 1), "the wait is granted on a busy key")
    expect(await api.run(first.release), "the release fails")
    expect(await api.run(api.lock("late", acquire_timeout_s=0).acquire), "the timed-out waiter still stands in line")


@check()
async def an_acquire_times_out_when_asked_to(api):
    first, second = api.lock("busy"), api.lock("busy", acquire_timeout_s=1)
    expect(await api.run(first.acquire), "the acquire is refused")
    began = time.monotonic()
    expect(not await api.run(second.acquire), "two hold one lock")
    took = time.monotonic() - began
    expect(0.9 < took < 5, f"a timeout of 1 s took {took:.2f} s")


@check()
async def two_limits_on_one_key_are_told_apart(api):
    a, b = await api.conn(), await api.conn()
    await api("acquire", a, "mix", 0)
    async with failing(d.LimitMismatchError, "a semaphore on a lock's key"):
        await api("sem_acquire", b, "mix", 0, 2)
    await api("sem_acquire", a, "mix-s", 0, 3)
    async with failing(d.LimitMismatchError, "another limit on a semaphore's key"):
        await api("sem_enqueue", b, "mix-s", 4)
    async with failing(d.LimitMismatchError, "a lock on a semaphore's key"):
        await api("acquire", b, "mix-s", 0)


@check()
async def release_and_renew_name_what_is_wrong(api):
    conn = await api.conn()
    token, lease = await api("acquire", conn, "e", 0, 40)
    expect(lease == 40, f"a lease of 40 comes back as {lease}")
    expect(await api("renew", conn, "e", token, 50) == 50, "a renewal to 50 s does not say so")
    expect(await api("renew", conn, "e", token) == 33, "a renewal without a lease is not the default's")
    for prefix in ("", "sem_"):
        for command in ("release", "renew"):
            async with failing(d.DflockdError, f"{prefix}{command} with an unknown token"):
                await api(prefix + command, conn, "e", "0" * 32)
            async with failing(d.DflockdError, f"{prefix}{command} of an unknown key"):
                await api(prefix + command, conn, "none", token)
    other = await api.conn()
    expect(await api("renew", other, "e", token) == 33, "another connection cannot renew")
    await api("release", other, "e", token)
    for command in ("release", "renew"):
        async with failing(d.DflockdError, f"{command} after the release"):
            await api(command, conn, "e", token)


@check()
async def enqueue_and_wait_name_what_is_wrong(api):
    conn = await api.conn()
    async with failing(d.NotQueuedError, "a wait without an enqueue"):
        await api("wait", conn, "w", 0)
    async with failing(d.NotQueuedError, "a semaphore's wait without an enqueue"):
        await api("sem_wait", conn, "w", 0)
    status, token, _ = await api("enqueue", conn, "w")
    expect(status == "acquired", f"an enqueue on a free key is {status}")
    async with failing(d.AlreadyQueuedError, "a second enqueue"):
        await api("enqueue", conn, "w")
    again, _ = await api("wait", conn, "w", 0)
    expect(again == token, "the wait hands out another token")
    other = await api.conn()
    await api("enqueue", other, "w")
    async with failing(d.DflockdTimeoutError, "a wait on a busy key"):
        await api("wait", other, "w", 0)
    async with failing(d.NotQueuedError, "a wait after the one that timed out"):
        await api("wait", other, "w", 0)


@check()
async def an_expired_lease_goes_to_the_next(api):
    a, b = await api.conn(), await api.conn()
    token, _ = await api("acquire", a, "x", 0, 1)
    after, _ = await api("acquire", b, "x", 10, 30)
    expect(after > token, "the later token does not compare greater")
    async with failing(d.DflockdError, "the renewal of an expired lease"):
        await api("renew", a, "x", token)
    await api("enqueue", a, "gone", 1)
    await api("acquire", b, "gone", 10)
    async with failing(d.LeaseExpiredError, "a wait for a grant that ran out"):
        await api("wait", a, "gone", 0)


@check()
async def a_held_lock_is_renewed(api):
    lock, rival = api.lock("long", lease_ttl_s=2), api.lock("long", acquire_timeout_s=4)
    expect(await api.run(lock.acquire), "the acquire is refused")
    token = lock.token
    expect(not await api.run(rival.acquire), "a renewed lock is granted to another")
    expect(lock.token == token, "the renewed lock is lost")
    expect(await api.run(lock.release), "the renewed lock cannot be released")


@check()
async def a_closed_connection_frees_its_locks_and_its_place(api):
    holder, waiter, last = await api.conn(), await api.conn(), await api.conn()
    await api("acquire", holder, "c", 0)
    expect((await api("enqueue", waiter, "c"))[0] == "queued", "an enqueue on a busy key is not `queued`")
    await api.close(waiter)
    await api.close(holder)
    await api("acquire", last, "c", 5)


@check()
async def stats_show_holders_waiters_and_the_idle(api):
    a, b = await api.conn(), await api.conn()
    token, _ = await api("acquire", a, "st", 0, 20)
    await api("enqueue", b, "st")
    await api("sem_acquire", a, "st-s", 0, 3)
    idle, _ = await api("acquire", a, "st-idle", 0)
    await api("release", a, "st-idle", idle)
    stats = await api("stats", a)
    lock = next(e for e in stats["locks"] if e["key"] == "st")
    expect(lock["waiters"] == 1 and isinstance(lock["owner_conn_id"], int), f"the lock is {lock}")
    expect(0 < lock["lease_expires_in_s"] <= 20, f"the lock is {lock}")
    expect({"key": "st-s", "limit": 3, "holders": 1, "waiters": 0} in stats["semaphores"], f"no semaphore in {stats}")
    expect(any(e["key"] == "st-idle" and e["idle_s"] >= 0 for e in stats["idle_locks"]), f"no idle lock in {stats}")
    expect(stats["connections"] >= 2, f"{stats['connections']} connections")


@check()
async def fifty_tasks_count_exactly(api):
    counter = 0

    async def add():
        nonlocal counter
        lock = api.lock("count", acquire_timeout_s=50)
        expect(await api.run(lock.acquire), "an acquire is refused")
        seen = counter
        await asyncio.sleep(0.002)
        counter = seen + 1
        expect(await api.run(lock.release), "a release fails")

    await asyncio.gather(*(add() for _ in range(50)))
    expect(counter == 50, f"50 tasks counted to {counter}")


@check()
async def keys_may_be_long_and_of_any_script(api):
    for key in ("ключ", "🔒" * 64, "a" * 256, "_", "row:42/../%00"):
        lock = api.lock(key, acquire_timeout_s=0)
        expect(await api.run(lock.acquire) and await api.run(lock.release), f"the key {key!r} is refused")


@check()
async def a_malformed_request_keeps_the_connection(api):
    conn = await api.conn()
    cases = [("L", "k", "0"), ("nope", "k", "0"), ("l", "", "0"), ("l", "a b", "0"), ("l", "k", "x"), ("l", "k", "-1"),
             ("l", "k", "0 0"), ("l", "k", ""), ("l", "k", "0 1 2"), ("sl", "k", "0 0"), ("r", "k", ""),
             ("l", "k", "9223372037"), ("auth", "_", "no auth here")]
    for command, key, arg in cases:
        answer = await api.run(conn.command, command, key, arg, read_timeout=5)
        expect(answer == "error", f"{(command, key, arg)} is answered {answer!r}")
    answer = await api.run(conn.command, "ping", "_", "_", read_timeout=5)
    expect(answer == "ok", f"ping is answered {answer!r}")
    await api("acquire", conn, "k", 0)


@check("--max-locks", "2", "--max-waiters", "1")
async def caps_are_named(api):
    a, b, c = await api.conn(), await api.conn(), await api.conn()
    await api("acquire", a, "m1", 0)
    await api("sem_acquire", a, "m2", 0, 2)
    async with failing(d.MaxLocksError, "a third key"):
        await api("acquire", a, "m3", 0)
    await api("enqueue", b, "m1")
    async with failing(d.MaxWaitersError, "a second waiter"):
        await api("enqueue", c, "m1")


@check("--auth-token", TOKEN)
async def the_auth_token_is_asked_for(api):
    lock = api.lock("a", auth_token=TOKEN)
    expect(await api.run(lock.acquire) and await api.run(lock.release), "the right token is refused")
    for wrong in ("wrong", TOKEN + "x", TOKEN[:-1], ""):
        async with failing(PermissionError, f"the token {wrong!r}"):
            await api.run(api.lock("a", auth_token=wrong).acquire)
    async with failing(d.AuthError, "no token"):
        await api.run(api.lock("a").acquire)


@check("--auth-token-file", "{tmp}/token")
async def the_auth_token_may_come_from_a_file(api):
    expect(await api.run(api.lock("a", auth_token=TOKEN).acquire), "the right token is refused")
    async with failing(PermissionError, "a wrong token"):
        await api.run(api.lock("a", auth_token="wrong").acquire)


@check()
async def a_token_that_nobody_asked_for_is_refused(api):
    async with failing(PermissionError, "a token for a server without one"):
        await api.run(api.lock("a", auth_token=TOKEN).acquire)


@check("--tls-cert", "{tmp}/cert.pem", "--tls-key", "{tmp}/key.pem", "--auth-token", TOKEN)
async def tls_carries_locks_and_the_auth_token(api):
    first, second = api.lock("t", auth_token=TOKEN), api.lock("t", auth_token=TOKEN, acquire_timeout_s=0)
    expect(await api.run(first.acquire), "the acquire over TLS is refused")
    expect(not await api.run(second.acquire), "two hold one lock")
    expect(await api.run(first.release), "the release over TLS fails")
    expect(await api.run(api.semaphore("t-s", 2, auth_token=TOKEN).acquire), "the semaphore over TLS is refused")
    async with failing(PermissionError, "a wrong token over TLS"):
        await api.run(api.lock("t", auth_token="wrong").acquire)


@check("--tls-cert", "{tmp}/cert.pem", "--tls-key", "{tmp}/key.pem")
async def tls_turns_strangers_away(api):
    async with failing(ssl.SSLCertVerificationError, "a client that does not know the certificate"):
        await api.run(api.lock("t", ssl_context=ssl.create_default_context()).acquire)
    try:
        await api.run(api.lock("t", ssl_context=None, acquire_timeout_s=1).acquire)
    except (OSError, RuntimeError):
        pass
    else:
        raise AssertionError("a client without TLS gets a lock from a server with it")
    old = api.server.context()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    expect(await api.run(api.lock("t", ssl_context=old).acquire), "TLS 1.2 is refused")


@check("--shutdown-timeout", "20")
async def a_stop_drains(api):
    holder, waiter, late = await api.conn(), await api.conn(), await api.conn()
    token, _ = await api("acquire", holder, "dr", 0)
    await api("acquire", late, "dr-2", 0)
    waiting = asyncio.create_task(api("acquire", waiter, "dr", 20))
    await until_waiting(api, "dr", 1)
    api.server.process.send_signal(signal.SIGTERM)
    async with failing(d.DrainingError, "a waiter at the stop"):
        await waiting
    async with failing(d.DrainingError, "an acquire after the stop"):
        await api("acquire", late, "dr-3", 0)
    expect(await api("renew", holder, "dr", token) == 33, "a holder cannot renew while the server stops")
    await api("release", holder, "dr", token)
    await api.close(late)
    code = await asyncio.to_thread(api.server.process.wait, 10)
    expect(code == 0, f"the server exits with {code}")


@check("--fence-state-file", "{tmp}/fence", restarts=True)
async def a_fence_grows_over_a_crash(api):
    conn = await api.conn()
    token, _ = await api("acquire", conn, "f", 0)
    reborn = await asyncio.to_thread(api.server.restart)
    after, _ = await api("acquire", await api.conn(reborn), "f", 0)
    expect(d.fence_from_token(after) > d.fence_from_token(token), "the fence does not grow over a crash")


@check(second=True)
async def keys_are_sharded_like_python_does(api):
    both = [api.server, api.server.second]
    servers = [("127.0.0.1", s.port) for s in both]
    for key in ("my-key", "deploy-job", "row:42", "ключ"):
        expect(await api.run(api.lock(key, servers=servers).acquire), f"the key {key!r} is refused")
        conn = await api.conn(both[d.stable_hash_shard(key, 2)])
        keys = [e["key"] for e in (await api("stats", conn))["locks"]]
        expect(key in keys, f"the key {key!r} is not on its shard")


def prepare(tmp):
    """What the settings of the servers refer to: a certificate with its key, and a token file."""
    (tmp / "token").write_text(TOKEN + "\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", str(tmp / "key.pem"), "-out", str(tmp / "cert.pem")],
        check=True, capture_output=True,
    )


async def run_one(function, api, limit):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(128))
    try:
        async with asyncio.timeout(limit) as clock:
            await function(api)
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise AssertionError(f"not done within {limit} s") from error
    finally:
        await api.close_all()


def run_check(binary, half, function, flags, setting, tmp):
    """Runs one check with servers of its own; returns what went wrong, or None."""
    (tmp / "server.log").unlink(missing_ok=True)
    (tmp / "fence").unlink(missing_ok=True)
    flags = [f.format(tmp=tmp) for f in flags]
    servers = []

    def start():
        servers.append(Server(binary, flags, tmp))
        return servers[-1]

    def restart():
        servers[0].stop()
        return start()

    try:
        server = start()
        if setting.get("second"):
            server.second = start()
        if setting.get("restarts"):
            server.restart = restart
        asyncio.run(run_one(function, Api(half, server), CHECK_LIMIT_S))
    except AssertionError as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    finally:
        for server in servers:
            server.stop()
    return None


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: dflockd_client.py BINARY [PART-OF-A-CHECK'S-NAME...]")
    binary, wanted = str(Path(sys.argv[1]).resolve()), sys.argv[2:]
    logging.getLogger("dflockd_client").setLevel(logging.CRITICAL)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        prepare(tmp)
        for function, flags, setting in CHECKS:
            if wanted and not any(w in function.__name__ for w in wanted):
                continue
            for half in ("async", "sync"):
                began = time.monotonic()
                wrong = run_check(binary, half, function, flags, setting, tmp)
                title = f"{half:5} {function.__name__.replace('_', ' ')} ({time.monotonic() - began:.1f} s)"
                if wrong is None:
                    passed += 1
                    print(f"ok     {title}", flush=True)
                    continue
                failed += 1
                log = tmp / "server.log"
                tail = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
                print(f"FAILED {title}: {wrong.strip()}", *(f"    server: {line}" for line in tail), sep="\n", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
