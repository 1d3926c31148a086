"""Puts Python's flufl.lock and our lock file on one path: both kinds take turns, read each other's locks, and break them.

Usage: flufl_lock.py BINARY DFLOCK [PART-OF-A-CHECK'S-NAME...], where BINARY is the example `file_lock`, and DFLOCK the
command line. Ends with a line `N passed, N failed`, and with exit code 1 when a check failed.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import flufl.lock._lockfile
from flufl.lock import Lock, LockState, NotLockedError, TimeOutError

CHECKS = []
BINARY = None
DFLOCK = None


def check(function):
    CHECKS.append(function)
    return function


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


class Quick(Lock):
    """The peer as it is, but for its pauses of a second: there are thousands of turns."""

    def _sleep(self):
        time.sleep(random.random() * 0.02)


def ours(*arguments):
    """Starts our half."""
    command = [BINARY, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output_of(process):
    out, err = process.communicate(timeout=120)
    expect(process.returncode == 0, f"it ended with {process.returncode}: {err}")
    return out


def shown(path):
    return dict(line.split(" ", 1) for line in output_of(ours("show", path)).splitlines())


def expire(path):
    long_ago = time.time() - 1000
    os.utime(path, (long_ago, long_ago))


def count(path, counter, times):
    """As our half's `count`, run as a process of its own."""
    lock = Quick(path)
    for _ in range(int(times)):
        lock.lock()
        number = int(Path(counter).read_text())
        Path(counter).write_text(str(number + 1))
        lock.unlock()


@check
def both_count_to_two_thousand_together(tmp):
    path, counter = tmp / "x.lck", tmp / "counter"
    counter.write_text("0")
    python = [sys.executable, "-P", __file__, "--count", path, counter]
    processes = [subprocess.Popen([*map(str, python), "250"]) for _ in range(4)]
    processes += [ours("count", path, counter, 250) for _ in range(4)]
    for process in processes:
        expect(process.wait(timeout=300) == 0, "every process ends well")
    expect(counter.read_text() == "2000", f"the counter says {counter.read_text()}")
    expect(os.listdir(tmp) == ["counter"], os.listdir(tmp))


@check
def python_reads_our_lock(tmp):
    path = tmp / "x.lck"
    holder = ours("hold", path)
    expect(holder.stdout.readline() == "held\n", "it has the lock")
    lock = Lock(str(path))
    expect(lock.state == LockState.unknown, f"a living neighbour's lock is {lock.state}")
    expect(lock.details == (lock.hostname, holder.pid, str(path)), lock.details)
    left = (lock.expiration - datetime.now()).total_seconds()
    expect(10 < left <= 15, f"it ends in {left} s")
    expect(not lock.is_locked, "it is not Python's")
    expect(Path(path).read_text().startswith(f"{path}|{lock.hostname}|{holder.pid}|"), "the claim is spelled alike")
    try:
        lock.lock(timeout=0)
        raise AssertionError("it is taken")
    except TimeOutError:
        pass
    expire(path)
    expect(lock.state == LockState.theirs_expired, f"an expired lock is {lock.state}")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    expect(lock.state == LockState.stale, f"a dead holder's lock is {lock.state}")


@check
def we_read_pythons_lock(tmp):
    path = tmp / "x.lck"
    expect(shown_state(path) == "Unlocked", "nobody has it")
    lock = Lock(str(path))
    lock.lock()
    found = shown(path)
    expect(found["state"] == "Unknown", found)
    expect((found["hostname"], int(found["pid"]), found["lockfile"]) == lock.details, found)
    expect(int(found["expiration"]) == int(lock.expiration.timestamp()), found)
    expire(path)
    expect(shown(path)["state"] == "TheirsExpired", "an expired lock of the living")
    lock.unlock()


def shown_state(path):
    process = ours("show", path)
    out, _ = process.communicate(timeout=60)
    return out.split()[1]


@check
def we_break_pythons_expired_lock_and_leave_the_directory_clean(tmp):
    path = tmp / "x.lck"
    lock = Lock(str(path))
    lock.lock()
    expire(path)
    holder = ours("hold", path)
    expect(holder.stdout.readline() == "held\n", "it is broken")
    expect(len(os.listdir(tmp)) == 2, os.listdir(tmp))
    expect(not lock.is_locked, "Python sees that it is gone")
    try:
        lock.unlock()
        raise AssertionError("it is not Python's to leave")
    except NotLockedError:
        pass
    holder.communicate("leave\n", timeout=60)
    expect(holder.returncode == 0, "ours keeps it to the end")
    expect(os.listdir(tmp) == [], os.listdir(tmp))


@check
def python_breaks_our_expired_lock_and_leaves_the_directory_clean(tmp):
    path = tmp / "x.lck"
    holder = ours("hold", path)
    expect(holder.stdout.readline() == "held\n", "it has the lock")
    holder.kill()
    holder.wait()
    expire(path)
    lock = Quick(str(path))
    lock.lock()
    expect(lock.is_locked, "Python has it")
    expect(len(os.listdir(tmp)) == 2, os.listdir(tmp))
    lock.unlock()
    expect(os.listdir(tmp) == [], os.listdir(tmp))


@check
def a_late_holder_of_ours_takes_nothing_from_python(tmp):
    path = tmp / "x.lck"
    holder = ours("hold", path)
    expect(holder.stdout.readline() == "held\n", "it has the lock")
    expire(path)
    lock = Quick(str(path))
    lock.lock()
    _, err = holder.communicate("leave\n", timeout=60)
    expect(holder.returncode != 0 and "NotLocked" in err, err)
    expect(lock.is_locked, "Python keeps it")
    lock.unlock()
    expect(os.listdir(tmp) == [], os.listdir(tmp))


@check
def an_unrelated_file_survives_both(tmp):
    path, counter = tmp / "x.lck", tmp / "counter"
    counter.write_text("0")
    path.write_text("notes, not a lock\n")
    expire(path)
    before = path.stat()
    waiting = ours("count", path, counter, 1)
    lock = Quick(str(path))
    try:
        lock.lock(timeout=1)
        raise AssertionError("it is no lock")
    except TimeOutError:
        pass
    waiting.kill()
    waiting.wait()
    after = path.stat()
    expect(path.read_text() == "notes, not a lock\n", "the text is as it was")
    expect((before.st_ino, before.st_mtime) == (after.st_ino, after.st_mtime), "and the file is the same")
    expect(counter.read_text() == "0", "nobody had the lock")


@check
def both_break_the_same_expired_locks_and_no_count_is_lost(tmp):
    counter = tmp / "counter"
    counter.write_text("0")
    for round_number in range(10):
        path = tmp / f"{round_number}.lck"
        claim = f"{path}|elsewhere|1|17"
        Path(claim).write_text(claim)
        os.link(claim, path)
        expire(path)
        processes = [subprocess.Popen(list(map(str, [sys.executable, "-P", __file__, "--count", path, counter, 5])))]
        processes += [ours("count", path, counter, 5) for _ in range(3)]
        for process in processes:
            expect(process.wait(timeout=120) == 0, "every process ends well")
    expect(counter.read_text() == "200", f"the counter says {counter.read_text()}")
    expect(os.listdir(tmp) == ["counter"], os.listdir(tmp))


def wait(path):
    """Waits for a lock that it never breaks, as a process of its own; says which one, and when it has had it."""
    flufl.lock._lockfile.CLOCK_SLOP = timedelta(days=1)
    lock = Quick(path)
    print(os.getpid(), lock.claimfile, flush=True)
    lock.lock()
    lock.unlock()
    print("had it", flush=True)


# A namespace of process numbers, and in it a number that no process out here is likely to have.
ELSEWHERE = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c",
             "until [ \"$(sh -c 'echo $$')\" -ge \"$FIRST\" ]; do :; done; \"$0\" \"$@\"; exit $?"]


def free_number():
    taken = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    return next(n for n in range(300, 30_000) if not taken.intersection(range(n, n + 100)))


@check
def a_waiter_of_pythons_in_another_process_namespace_keeps_its_claim(tmp):
    if subprocess.run([*ELSEWHERE[:4], "true"], stderr=subprocess.DEVNULL).returncode:
        print("!!! SKIPPED: this machine makes no namespace of process numbers")
        return
    path = tmp / "x.lck"
    lock = Lock(str(path))
    lock.lock()
    command = [*ELSEWHERE, sys.executable, "-P", __file__, "--wait", path]
    environment = os.environ | {"FIRST": str(free_number())}
    waiter = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)
    pid, claim = waiter.stdout.readline().split(" ", 1)
    claim = Path(claim.strip())
    expect(not Path(f"/proc/{pid}").exists(), f"{pid} runs out here as well")
    while not claim.exists():
        time.sleep(0.01)
    expire(claim)
    expire(path)
    holder = ours("hold", path)
    expect(holder.stdout.readline() == "held\n", "it is broken")
    expect(claim.exists(), "the waiter's claim stays")
    holder.communicate("leave\n", timeout=60)
    out, _ = waiter.communicate(timeout=60)
    expect((waiter.returncode, out) == (0, "had it\n"), f"{waiter.returncode}: {out}")
    expect(os.listdir(tmp) == [], os.listdir(tmp))


def key_path(directory, key):
    """The lock file of a key in a directory, as the docs of `Directory` say it."""
    name = quote(key, safe="") + ".lock"
    return Path(directory, "%2E" + name[1:] if name.startswith(".") else name)


def under_key(directory, key, flags, command):
    """Starts a command that has the key of a directory."""
    command = [DFLOCK, "run", "--directory", directory, *flags, key, "--", *command]
    return subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


@check
def a_key_of_a_directory_and_pythons_lock_exclude_each_other(tmp):
    for key in ["nightly", "jobs/17", ".hidden", "50%~a_b-c.d", "b\u00fccher|1|2"]:
        path = key_path(tmp, key)
        holder = under_key(tmp, key, [], ["sh", "-c", "echo held; read _; true"])
        expect(holder.stdout.readline() == "held\n", "it has the key")
        expect(path.exists(), f"{path} is the lock file of {key}, and not one of {os.listdir(tmp)}")
        lock = Lock(str(path))
        expect(lock.details == (lock.hostname, holder.pid, str(path)), lock.details)
        try:
            lock.lock(timeout=0)
            raise AssertionError("it is taken")
        except TimeOutError:
            pass
        holder.communicate("leave\n", timeout=60)
        lock.lock()
        busy = under_key(tmp, key, ["--try"], ["true"])
        busy.communicate(timeout=60)
        expect(busy.returncode == 124, f"it ended with {busy.returncode}, and the key is Python's")
        waiter = under_key(tmp, key, ["--wait", "60s"], ["echo", "had it"])
        lock.unlock()
        expect(output_of(waiter) == "had it\n", "it gets the key after Python")
    expect(os.listdir(tmp) == [], os.listdir(tmp))


@check
def a_directory_and_python_count_together_under_a_key(tmp):
    key, counter = "a/counter", tmp / "counter"
    locks = tmp / "locks"
    locks.mkdir()
    counter.write_text("0")
    python = [sys.executable, "-P", __file__, "--count", key_path(locks, key), counter, 30]
    processes = [subprocess.Popen(list(map(str, python))) for _ in range(3)]
    script = "n=$(cat \"$1\"); echo $((n + 1)) > \"$1\""
    for _ in range(10):
        ours_too = [under_key(locks, key, [], ["sh", "-c", script, "sh", counter]) for _ in range(3)]
        for process in ours_too:
            output_of(process)
    for process in processes:
        expect(process.wait(timeout=300) == 0, "every process ends well")
    expect(counter.read_text().strip() == "120", f"the counter says {counter.read_text()}")
    expect(os.listdir(locks) == [], os.listdir(locks))


def run(function):
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as tmp:
        try:
            function(Path(tmp))
        except Exception:
            return function, traceback.format_exc(), time.monotonic() - began
    return function, None, time.monotonic() - began


def main():
    global BINARY, DFLOCK
    BINARY, DFLOCK, *parts = sys.argv[1:]
    chosen = [c for c in CHECKS if not parts or any(part in c.__name__ for part in parts)]
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for function, fault, seconds in pool.map(run, chosen):
            print(f"{'FAIL' if fault else 'ok  '} {function.__name__} ({seconds:.1f} s)")
            if fault:
                failed += 1
                print(fault)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        count(*sys.argv[2:])
    elif sys.argv[1:2] == ["--wait"]:
        wait(*sys.argv[2:])
    else:
        sys.exit(main())
