#!/usr/bin/env python3
"""Started by scripts/bench, which makes the server and the line: mounts each program afresh for each sample, runs
the workloads, compares every result with the served directory, and writes the table and the plot.

Standard library only. Ends only what it started, and unmounts what it mounted, also on SIGTERM."""
import argparse, contextlib, datetime, glob, json, math, os, platform, random, re, select, shlex, shutil, signal
import statistics, subprocess, sys, tempfile, time
from xml.sax.saxutils import escape

MIB = 1 << 20
E = os.environ


# ProFTPD's listener sleeps for up to 2 x 200 ms after a session has ended, and who connects meanwhile waits for it.
# Without a pause each sample would pay for the one before, and the first peer in the row for none.
PAUSE_SECONDS = 0.5


class Wrong(Exception):
    """A result that is not right: worse than any time."""


class Failed(Exception):
    """An error, as the program at work in the mount saw it."""


class Late(Exception):
    """Not done within --timeout."""


# ---- what is measured ------------------------------------------------------------------------------------------


class Sizes:
    """How much each workload moves: less where the line is far, little with --quick."""

    def __init__(self, quick, far):
        self.read_mib = 64 if far or quick else 1024
        self.direct_mib = self.read_mib
        self.write_mib = 32 if far or quick else 512
        self.random_mib = 64 if quick else 1024
        self.looks = 5 if quick else 20
        self.small, self.written, self.folders, self.flat, self.reads = (
            (50, 20, 20, 1000, 20) if quick else (500, 200, 200, 20_000, 200))

    def titles(self):
        """Every row of the table: its key, what it says, and whether it is a time of which a ratio makes sense."""
        files = self.folders * 10
        return {
            "mount": "mount, until `ls` answers",
            "seqread": f"read {self.read_mib} MiB (`cat`)",
            "directread": f"read {self.direct_mib} MiB, O_DIRECT",
            "tlsread": f"read {self.direct_mib} MiB, TLS",
            "seqwrite": f"write {self.write_mib} MiB (`cp`), until the server has it",
            "smallread": f"read {self.small} files of 4 KiB (`cat`)",
            "smallwrite": f"write {self.written} files of 4 KiB, until the server has them",
            "smallwrite-returns": "… until `cp -r` returns",
            "tarx": f"`tar x` of {self.written} files, until the server has them",
            "gitcheckout": f"`git checkout` of {self.written} files, likewise",
            "unzip": f"`unzip` of {self.written} files, likewise",
            "rsync": f"`rsync -a` of {self.written} files, likewise",
            "rsync2": "… once more, when nothing has changed",
            "grepr": f"`grep -r` through {files:,} files of 4 KiB",
            "lsr": f"`ls -lR` of {self.folders} folders",
            "lsr2": "… once more",
            "flatls": f"`ls -l` of {self.flat:,} files",
            "randread": f"{self.reads} random reads of 4 KiB in {self.random_mib} MiB",
            "append": "append 1 KiB to 32 MiB",
            "patch": "change 4 KiB in 32 MiB",
            "rmrf": f"`rm -rf` of {self.written} files",
            "beside": f"`ls` of a folder beside a large copy, median of {self.looks}",
            "beside-longest": "… the longest",
        }


EXTRAS = {  # rows that are no times: key, what it says
    "seqread-memory": "most memory, sequential read, MiB",
    "flatls-memory": "most memory, `ls -l` of many files, MiB",
    "seqread-cpu": "CPU seconds, sequential read",
    "directread-cpu": "CPU seconds, O_DIRECT read",
    "seqwrite-cpu": "CPU seconds, sequential write",
}
WORKLOADS = ["mount", "seqread", "directread", "tlsread", "seqwrite", "smallread", "smallwrite", "grepr", "lsr",
             "flatls", "randread", "append", "patch", "rmrf", "tarx", "gitcheckout", "unzip", "rsync", "beside"]


class Served:
    """The directory that the server serves, and what a workload needs there."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.root = f"{E['BENCH_WORK']}/served"
        self.local = f"{E['BENCH_WORK']}/local"
        os.makedirs(self.local)
        # The measured programs belong to the same user as this one, who reads and writes here directly.
        os.makedirs(f"{self.root}/w")
        self.give(f"{self.root}/w")
        self.count = 0

    def give(self, path):
        if os.getuid() == 0:
            subprocess.run(["chown", "-R", E["BENCH_USER"], path], check=True)

    def fill(self, works):
        s = self.sizes
        wants = lambda *names: any(name in works for name in names)
        if wants("seqread", "directread", "tlsread", "beside"):
            self.file(f"{self.root}/read.bin", s.read_mib * MIB)
        if wants("randread"):
            self.file(f"{self.root}/random.bin", s.random_mib * MIB)
        if wants("append", "patch"):
            self.file(f"{self.local}/app.bin", 32 * MIB)
        if wants("seqwrite"):
            self.file(f"{self.local}/write.bin", s.write_mib * MIB)
        if wants("smallread"):
            self.folder(f"{self.root}/small", s.small, 4096)
        if wants("smallwrite", "rmrf", "tarx", "gitcheckout", "unzip", "rsync"):
            self.folder(f"{self.local}/few", s.written, 4096)
        if wants("tarx"):
            self.pack("tar cf few.tar few")
        if wants("unzip"):
            shutil.make_archive(f"{self.local}/few", "zip", self.local, "few")
        if wants("gitcheckout"):
            git = "git -c user.name=bench -c user.email=bench@localhost -c init.defaultBranch=main"
            self.pack(f"{git} init -q --bare few.git && cd few && g='{git} --git-dir=../few.git --work-tree=.' && "
                      "$g add . && $g commit -qm few && rm ../few.git/index")
        if wants("flatls"):
            self.folder(f"{self.root}/flat", s.flat, 10)
        if wants("lsr", "grepr", "beside"):
            for number in range(s.folders):
                self.folder(f"{self.root}/tree/d{number:03}", 10, 4096)
        self.give(self.root)

    def pack(self, command):
        subprocess.run(["bash", "-c", command], cwd=self.local, check=True, stdin=subprocess.DEVNULL)

    def file(self, path, size):
        with open(path, "wb") as file:
            while size > 0:
                file.write(os.urandom(min(size, MIB)))
                size -= MIB

    def folder(self, path, count, size):
        os.makedirs(path)
        for number in range(count):
            # Every seventh holds what `grep` looks for.
            head = b"needle\n" if number % 7 == 0 else b"hay\n"
            with open(f"{path}/f{number:05}", "wb") as file:
                file.write((head + os.urandom(size))[:size])

    def scratch(self):
        """A new directory for what one sample writes: its path here, and its name on the server."""
        self.count += 1
        path = f"{self.root}/w/{self.count}"
        os.makedirs(path)
        self.give(path)
        return path, f"w/{self.count}"


# ---- programs, mounted -------------------------------------------------------------------------------------------


class Peer:
    """One column of the table."""

    def __init__(self, name, title, options=(), only=()):
        self.name, self.title, self.options, self.only = name, title, list(options), only

    def command(self, mount, work, tls):
        host, port = E["BENCH_ADDRESS"], E["BENCH_TLS_PORT" if tls else "BENCH_PORT"]
        url = f"{host}:{port}/"
        if self.name == "curlftpfs":
            secure = f",ssl,cacert={E['BENCH_CERTIFICATE']}" if tls else ""
            return [E["CURLFTPFS"], "-f", "-o", f"user=user:password{secure}", f"ftp://{url}", mount]
        if self.name.startswith("rclone"):
            hidden = subprocess.run([E["RCLONE"], "obscure", "password"], capture_output=True, text=True, check=True)
            secure = ["--ftp-explicit-tls", "--ftp-no-check-certificate"] if tls else []
            cache = ["--vfs-cache-mode", "full"] if self.name == "rclone-full" else []
            return [E["RCLONE"], "mount", ":ftp:", mount, "--ftp-host", host, "--ftp-port", port, "--ftp-user", "user",
                    "--ftp-pass", hidden.stdout.strip(), "--cache-dir", f"{work}/rclone", *cache, *secure]
        secure = ["--tls", "explicit", "--tls-ca", E["BENCH_CERTIFICATE"]] if tls else []
        return [E["FTPFS"], "mount", "--foreground", *secure, *self.options, f"ftp://user:password@{url}", mount]


def clean_environment(work):
    """Nobody's own settings, caches or known hosts."""
    kept = {key: value for key, value in E.items() if not key.startswith(("XDG_", "RCLONE_", "FTPFS_", "NETRC"))}
    for name in ("cache", "state", "run"):
        os.makedirs(f"{work}/{name}", mode=0o700, exist_ok=True)
    return {**kept, "HOME": work, "LC_ALL": "C", "RCLONE_CONFIG": "/dev/null", "XDG_CACHE_HOME": f"{work}/cache",
            "XDG_STATE_HOME": f"{work}/state", "XDG_RUNTIME_DIR": f"{work}/run"}


class Mount:
    """A program in the foreground, with caches of its own; `seconds` is the time until `ls` answered."""

    def __init__(self, bench, peer, tls):
        self.bench = bench
        self.work = tempfile.mkdtemp(dir=E["BENCH_DISK"], prefix="m")
        self.path = f"{self.work}/mnt"
        os.makedirs(self.path)
        self.environment = clean_environment(self.work)
        self.process = None
        try:
            self.start(peer, tls)
        except BaseException:
            self.stop()
            raise

    def start(self, peer, tls):
        command = peer.command(self.path, self.work, tls)
        began = time.monotonic()
        with open(f"{self.work}/log", "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True, env=self.environment)
        while not self.mounted():
            if self.process.poll() is not None or time.monotonic() - began > 30:
                with open(f"{self.work}/log", errors="replace") as log:
                    raise Failed("does not mount: " + log.read()[-300:].strip().replace("\n", " "))
            time.sleep(0.001)
        self.bench.run(["ls", self.path], self)
        self.seconds = time.monotonic() - began
        self.cpu_before = self.cpu()

    def mounted(self):
        with open("/proc/self/mountinfo") as table:
            return any(line.split()[4] == self.path for line in table)

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_used(self):
        return self.cpu() - self.cpu_before

    def memory_mib(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1)) / 1024

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()

    def stop(self):
        """Unmounts and waits; what does not end within 10 s is killed."""
        if self.mounted():
            subprocess.run(["fusermount3", "-u", self.path], capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired, AttributeError):
            self.process.wait(10)
        self.kill()
        if self.process:
            self.process.wait()
        if self.mounted():
            subprocess.run(["fusermount3", "-uz", self.path], capture_output=True)
        shutil.rmtree(self.work, ignore_errors=True)


# ---- workloads -----------------------------------------------------------------------------------------------------


class Bench:
    """Each method `w_NAME` runs one workload in a mount, `c_NAME` the same with curl or lftp, and `p_NAME`, before
    the mount is made, puts in place what it changes. They return rows: seconds, CPU seconds, MiB."""

    def __init__(self, arguments, sizes, served):
        self.timeout, self.sizes, self.served = arguments.timeout, sizes, served
        self.local, self.root = served.local, served.root
        self.environment = clean_environment(f"{E['BENCH_DISK']}/plain")
        host, port = E["BENCH_ADDRESS"], E["BENCH_PORT"]
        self.url = f"ftp://user:password@{host}:{port}"
        self.tls_url = f"ftp://user:password@{host}:{E['BENCH_TLS_PORT']}"
        self.first = True  # the repetition in which long comparisons are made

    def run(self, command, mount=None, accepted=(0,), output=None):
        """Runs a command to its end: seconds and what it wrote. When it is late, it and the mount are killed."""
        with tempfile.TemporaryFile(dir=E["BENCH_WORK"]) as out, tempfile.TemporaryFile() as err:
            began = time.monotonic()
            shell = isinstance(command, str)
            process = subprocess.Popen(["bash", "-c", command] if shell else command, stdin=subprocess.DEVNULL,
                                       stdout=output or out, stderr=err, start_new_session=True, env=self.environment)
            try:
                # Not wait(timeout), which polls and is up to 50 ms late.
                descriptor = os.pidfd_open(process.pid)
                done = select.select([descriptor], [], [], self.timeout)[0]
                os.close(descriptor)
                if not done:
                    raise Late()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                if mount:
                    mount.kill()
                raise
            finally:
                process.wait()
            seconds = time.monotonic() - began
            out.seek(0), err.seek(0)
            text, said = out.read().decode(errors="replace"), err.read(4000).decode(errors="replace").strip()
            if process.returncode not in accepted:
                raise Failed(said.split("\n")[-1].replace(mount.path if mount else "\0", "MNT")[-200:])
            return seconds, text

    def until(self, reached, began):
        """Looks at the served directory until it is as it should be: seconds since `began`."""
        while not reached():
            if time.monotonic() - began > self.timeout:
                raise Late()
            time.sleep(0.002)
        return time.monotonic() - began

    def same(self, one, other):
        if subprocess.run(["diff", "-r", one, other], capture_output=True).returncode:
            raise Wrong("the bytes differ")

    def w_mount(self, mount, place):
        return {"mount": mount.seconds}

    def w_seqread(self, mount, place):
        seconds, _ = self.run(["cat", f"{mount.path}/read.bin"], mount, output=subprocess.DEVNULL)
        rows = {"seqread": seconds, "seqread-memory": mount.memory_mib(), "seqread-cpu": mount.cpu_used()}
        if self.first:
            self.same(f"{mount.path}/read.bin", f"{self.root}/read.bin")
        return rows

    def c_seqread(self, place):
        before = os.times()
        seconds, _ = self.run(["curl", "-sS", "-o", "/dev/null", f"{self.url}/read.bin"])
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return {"seqread": seconds, "seqread-cpu": cpu, "directread": seconds, "directread-cpu": cpu}

    def w_directread(self, mount, place):
        read = f"dd if={mount.path}/read.bin iflag=direct bs=1M status=none"
        seconds, _ = self.run(f"{read} of=/dev/null", mount)
        rows = {"directread": seconds, "directread-cpu": mount.cpu_used()}
        if self.first:
            try:
                self.run(f"set -o pipefail; {read} | cmp - {self.root}/read.bin", mount)
            except Failed as error:
                raise Wrong(f"the bytes differ: {error}") from error
        return rows

    def w_tlsread(self, mount, place):
        seconds, _ = self.run(["cat", f"{mount.path}/read.bin"], mount, output=subprocess.DEVNULL)
        if self.first:
            self.same(f"{mount.path}/read.bin", f"{self.root}/read.bin")
        return {"tlsread": seconds}

    def c_tlsread(self, place):
        secure = ["--ssl-reqd", "--cacert", E["BENCH_CERTIFICATE"]]
        return {"tlsread": self.run(["curl", "-sS", *secure, "-o", "/dev/null", f"{self.tls_url}/read.bin"])[0]}

    def w_seqwrite(self, mount, place):
        source, (path, name) = f"{self.local}/write.bin", place
        began = time.monotonic()
        self.run(["cp", source, f"{mount.path}/{name}/out"], mount)
        held = self.until(lambda: size(f"{path}/out") == os.path.getsize(source), began)
        rows = {"seqwrite": held, "seqwrite-cpu": mount.cpu_used()}
        self.same(source, f"{path}/out")
        return rows

    def c_seqwrite(self, place):
        seconds, _ = self.run(["curl", "-sS", "-T", f"{self.local}/write.bin", f"{self.url}/{place[1]}/out"])
        self.same(f"{self.local}/write.bin", f"{place[0]}/out")
        return {"seqwrite": seconds}

    def w_smallread(self, mount, place):
        with tempfile.TemporaryFile(dir=E["BENCH_WORK"]) as output:
            seconds, _ = self.run(f"cat {mount.path}/small/*", mount, output=output)
            output.seek(0)
            want = b"".join(open(path, "rb").read() for path in sorted(glob.glob(f"{self.root}/small/*")))
            if output.read() != want:
                raise Wrong("the bytes differ")
        return {"smallread": seconds}

    def c_smallread(self, place):
        return {"smallread": self.mirror("small")}

    def w_grepr(self, mount, place):
        command = ["grep", "-rc", "needle", "."]
        seconds, text = self.run(["env", "-C", f"{mount.path}/tree", *command], mount, (0, 1))
        _, want = self.run(["env", "-C", f"{self.root}/tree", *command], None, (0, 1))
        if sorted(text.split()) != sorted(want.split()):
            raise Wrong("it finds something else")
        return {"grepr": seconds}

    def c_grepr(self, place):
        return {"grepr": self.mirror("tree")}

    def w_lsr(self, mount, place):
        want = sorted(("4096", f"f{number:05}") for number in range(10)) * self.sizes.folders
        rows = {}
        for row in ("lsr", "lsr2"):
            rows[row], text = self.run(["ls", "-lR", f"{mount.path}/tree"], mount)
            compare_listing(text, want)
        return rows

    def c_lsr(self, place):
        return {"lsr": self.lftp("find -l tree > /dev/null")}

    def w_flatls(self, mount, place):
        seconds, text = self.run(["ls", "-l", f"{mount.path}/flat"], mount)
        rows = {"flatls": seconds, "flatls-memory": mount.memory_mib()}
        compare_listing(text, [("10", f"f{number:05}") for number in range(self.sizes.flat)])
        return rows

    def c_flatls(self, place):
        # Not `cls -l`, which asks for the time of each file.
        return {"flatls": self.lftp("ls flat > /dev/null")}

    def w_smallwrite(self, mount, place):
        to = f"{mount.path}/{place[1]}/few"
        held, returned = self.written(["cp", "-r", f"{self.local}/few", to], mount, place)
        return {"smallwrite": held, "smallwrite-returns": returned}

    def w_tarx(self, mount, place):
        command = ["tar", "xf", f"{self.local}/few.tar", "-C", f"{mount.path}/{place[1]}"]
        return {"tarx": self.written(command, mount, place)[0]}

    def w_unzip(self, mount, place):
        command = ["unzip", "-q", f"{self.local}/few.zip", "-d", f"{mount.path}/{place[1]}"]
        return {"unzip": self.written(command, mount, place)[0]}

    def w_gitcheckout(self, mount, place):
        tree = f"{mount.path}/{place[1]}/few"
        # A copy of the repository, as git writes its index there.
        copy = f"{E['BENCH_WORK']}/copy.git"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(f"{self.local}/few.git", copy)
        command = f"mkdir {tree} && git --git-dir={copy} --work-tree={tree} checkout -qf main"
        return {"gitcheckout": self.written(command, mount, place)[0]}

    def w_rsync(self, mount, place):
        command = ["rsync", "-a", f"{self.local}/few", f"{mount.path}/{place[1]}/"]
        held, _ = self.written(command, mount, place)
        again, said = self.run([*command[:1], "-i", *command[1:]], mount)
        if [line for line in said.split("\n") if line.startswith(("<", ">"))]:
            raise Wrong("rsync sends files again that have not changed")
        return {"rsync": held, "rsync2": again}

    def written(self, command, mount, place):
        """Runs what writes the few files: seconds until the server has them, and until it returned."""
        source, path = f"{self.local}/few", place[0]
        names = os.listdir(source)
        began = time.monotonic()
        returned, _ = self.run(command, mount)
        held = self.until(lambda: all(size(f"{path}/few/{one}") == 4096 for one in names), began)
        # Temporary names, if any, have 5 s to go away.
        gone = time.monotonic() + 5
        while len(os.listdir(f"{path}/few")) != len(names) and time.monotonic() < gone:
            time.sleep(0.02)
        self.same(source, f"{path}/few")
        return held, returned

    def c_smallwrite(self, place):
        seconds = self.lftp(f"mirror -R --parallel=8 {self.local}/few {place[1]}/few")
        self.same(f"{self.local}/few", f"{place[0]}/few")
        return {"smallwrite": seconds}

    def p_rmrf(self, path):
        shutil.copytree(f"{self.local}/few", f"{path}/few")

    def w_rmrf(self, mount, place):
        began = time.monotonic()
        self.run(["rm", "-rf", f"{mount.path}/{place[1]}/few"], mount)
        return {"rmrf": self.until(lambda: not os.path.exists(f"{place[0]}/few"), began)}

    def c_rmrf(self, place):
        seconds = self.lftp(f"rm -r {place[1]}/few")
        if os.path.exists(f"{place[0]}/few"):
            raise Wrong("still there")
        return {"rmrf": seconds}

    def w_beside(self, mount, place):
        """Folders listed one by one, in no order, while a file is being read that fills the line."""
        code = """
import random, statistics, subprocess
copy = subprocess.Popen(["bash", "-c", "while cat read.bin; do :; done"], cwd=a[0], stdout=subprocess.DEVNULL, start_new_session=True)
try:
    os.listdir(a[0] + "/tree")
    time.sleep(5)
    for number in random.Random(7).sample(range(int(a[1])), int(a[2])):
        one = time.monotonic()
        assert len(os.listdir(f"{a[0]}/tree/d{number:03}")) == 10
        r.append(time.monotonic() - one)
        time.sleep(random.Random(number).uniform(0.2, 0.6))
    assert copy.poll() is None, "the copy has ended"
finally:
    os.killpg(copy.pid, 9)
    copy.wait()
print(statistics.median(r), max(r))
"""
        arguments = [mount.path, str(self.sizes.folders), str(self.sizes.looks)]
        script = f"import os, sys, time\na = sys.argv[1:]\nr = []\n{code}"
        _, text = self.run([sys.executable, "-c", script, *arguments], mount)
        median, longest = map(float, text.split())
        return {"beside": median, "beside-longest": longest}

    def w_randread(self, mount, place):
        blocks = random.Random(7).sample(range(self.sizes.random_mib * 256), self.sizes.reads)
        code = "f = os.open(a[0], os.O_RDONLY)\nfor n in a[1].split(','): r.append(os.pread(f, 4096, int(n) * 4096))"
        check = "g = os.open(a[2], os.O_RDONLY)\nif r != [os.pread(g, 4096, int(n) * 4096) for n in a[1].split(',')]: t = -1"
        arguments = [f"{mount.path}/random.bin", ",".join(map(str, blocks)), f"{self.root}/random.bin"]
        seconds = self.python(mount, code, check, arguments)
        if seconds < 0:
            raise Wrong("the bytes differ")
        return {"randread": seconds}

    def python(self, mount, code, check, arguments):
        """Runs a little Python, which measures itself: the interpreter's start is not counted."""
        whole = f"import os, sys, time\na = sys.argv[1:]\nr = []\nt = time.monotonic()\n{code}\nt = time.monotonic() - t\n"
        _, text = self.run([sys.executable, "-c", f"{whole}{check}\nprint(t)", *arguments], mount)
        return float(text)

    def p_append(self, path):
        shutil.copyfile(f"{self.local}/app.bin", f"{path}/app.bin")

    p_patch = p_append

    def w_append(self, mount, place):
        code = "f = os.open(a[0], os.O_WRONLY | os.O_APPEND); os.write(f, b'A' * 1024); os.close(f)"
        return {"append": self.change(mount, place, code, lambda old: old + b"A" * 1024)}

    def w_patch(self, mount, place):
        code = "f = os.open(a[0], os.O_RDWR); os.pwrite(f, b'P' * 4096, 16 << 20); os.close(f)"
        middle, end = 16 * MIB, 16 * MIB + 4096
        return {"patch": self.change(mount, place, code, lambda old: old[:middle] + b"P" * 4096 + old[end:])}

    def change(self, mount, place, code, expected):
        path = f"{place[0]}/app.bin"
        old = read(path)
        want = expected(old)
        at = len(old) if len(want) > len(old) else 16 * MIB
        # The interpreter takes some 20 ms to start, and its own time is exact: what the server lacks afterwards is added.
        try:
            seconds = self.python(mount, code, "", [f"{mount.path}/{place[1]}/app.bin"])
        except Failed as error:
            harm = "" if read(path) == old else "; THE FILE ON THE SERVER IS DAMAGED"
            raise Failed(f"{error}{harm}") from error
        began = time.monotonic()
        try:
            later = self.until(lambda: size(path) == len(want) and read(path, at, 1024) == want[at:at + 1024], began)
        except Late:
            raise Wrong("success was told, and the server has other bytes") from None
        if read(path) != want:
            raise Wrong("the server has other bytes")
        return seconds + later

    def mirror(self, folder):
        target = tempfile.mkdtemp(dir=E["BENCH_WORK"])
        try:
            seconds = self.lftp(f"mirror --parallel=8 {folder} {target}/x")
            self.same(f"{self.root}/{folder}", f"{target}/x")
            return seconds
        finally:
            shutil.rmtree(target)

    def lftp(self, script):
        script = f"set net:max-retries 2; set ftp:ssl-allow no; set xfer:clobber on; {script}; bye"
        return self.run(["lftp", "-e", script, self.url])[0]

    def sample(self, peer, work):
        """One sample: rows."""
        path, name = place = self.served.scratch()
        mount = None
        try:
            prepare = getattr(self, f"p_{work}", None)
            if prepare:
                prepare(path)
                self.served.give(path)
            if peer.name == "ceiling":
                return getattr(self, f"c_{work}")(place)
            mount = Mount(self, peer, work == "tlsread")
            return getattr(self, f"w_{work}")(mount, place)
        finally:
            if mount:
                mount.stop()
            shutil.rmtree(path, ignore_errors=True)


def size(path):
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def read(path, offset=0, count=-1):
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError:
        return b""


def compare_listing(text, want):
    found = re.findall(r"^-\S+ .* (\d+) \S+ +\S+ \S+ (\S+)$", text, re.M)
    if sorted(found) != sorted(want):
        raise Wrong(f"{len(found)} files listed, {len(want)} are there, or a size is wrong")


def measure(bench, peers, works, reps):
    """All samples, peers taking turns: {(row, peer): [number]}, {(workload, peer): what went wrong}."""
    samples, troubles = {}, {}
    for work in works:
        for repetition in range(reps):
            bench.first = repetition == 0
            # Each comes first in turn.
            first = repetition % len(peers)
            for peer in peers[first:] + peers[:first]:
                unfit = peer.only and work not in peer.only
                if unfit or (work, peer.name) in troubles or peer.name == "ceiling" and not hasattr(bench, f"c_{work}"):
                    continue
                rows = {}
                time.sleep(PAUSE_SECONDS)
                try:
                    rows = bench.sample(peer, work)
                except Late:
                    troubles[work, peer.name] = f"> {bench.timeout:g} s"
                except Wrong as error:
                    troubles[work, peer.name] = f"WRONG: {error}"
                except (Failed, OSError) as error:
                    troubles[work, peer.name] = f"error: {error}"
                for row, number in rows.items():
                    samples.setdefault((row, peer.name), []).append(number)
                text = troubles.get((work, peer.name)) or "  ".join(f"{row} {number:.3f}" for row, number in rows.items())
                print(f"{time.strftime('%T')} {peer.name:12} {text}", file=sys.stderr, flush=True)
    return samples, troubles


# ---- table -----------------------------------------------------------------------------------------------------------


class Results:
    """What was measured, as it is written to --json and read again with --from."""

    def __init__(self, about, titles, peers, samples, troubles):
        self.about, self.titles, self.peers = about, titles, peers
        self.samples, self.troubles = samples, troubles

    @classmethod
    def load(cls, path):
        with open(path) as file:
            saved = json.load(file)
        pairs = lambda table: {tuple(key.split("|")): value for key, value in table.items()}
        return cls(saved["about"], saved["titles"], saved["peers"], pairs(saved["samples"]), pairs(saved["troubles"]))

    def save(self, path):
        flat = lambda table: {"|".join(key): value for key, value in table.items()}
        saved = {"about": self.about, "titles": self.titles, "peers": self.peers, "samples": flat(self.samples),
                 "troubles": flat(self.troubles)}
        with open(path, "w") as file:
            json.dump(saved, file, indent=1)

    def trouble(self, row, peer):
        return self.troubles.get((base(row), peer))

    def median(self, row, peer):
        """None if it was not measured, or if anything was wrong in any repetition."""
        values = self.samples.get((row, peer))
        return statistics.median(values) if values and not self.trouble(row, peer) else None

    def rclone(self, row):
        """The better of its modes."""
        values = [self.median(row, peer) for peer in self.peers if peer.startswith("rclone")]
        return min((value for value in values if value is not None), default=None)

    def rows(self, titles):
        """Those that any mount has: curl alone makes none."""
        known = [(key, peer) for table in (self.samples, self.troubles) for key, peer in table]
        return [row for row in titles if any(key == row and peer != "ceiling" for key, peer in known)]

    def cell(self, row, peer):
        trouble = self.trouble(row, peer)
        if trouble:
            return trouble if trouble.startswith(">") else trouble.split(":")[0]
        value = self.median(row, peer)
        return "" if value is None else number(value)


def base(row):
    """The workload that a row is a part of."""
    return "lsr" if row == "lsr2" else row.split("-")[0]


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def ratio(value):
    return f"{value:.0f}×" if value >= 20 else f"{value:.1f}×" if value >= 2 else f"{value:.2f}×"


def markdown(results):
    titles = list(results.peers.values())
    lines = [results.about["line"] + " Seconds, medians; less is better. curl and lftp connect and log in "
             "within their times, mounts before.", "",
             "| | " + " | ".join(titles) + " | faster than rclone | than curl, lftp |", "|---" * (len(titles) + 3) + "|"]
    for row in results.rows(results.titles):
        ours, rclone, ceiling = results.median(row, "ftpfs"), results.rclone(row), results.median(row, "ceiling")
        cells = [results.cell(row, peer) for peer in results.peers]
        cells.append(ratio(rclone / ours) if ours and rclone else "")
        cells.append(ratio(ceiling / ours) if ours and ceiling else "")
        lines.append(f"| {results.titles[row]} | " + " | ".join(cells) + " |")
    for row in results.rows(EXTRAS):
        lines.append(f"| {EXTRAS[row]} | " + " | ".join(results.cell(row, peer) for peer in results.peers) + " | | |")
    notes = [f"- {results.peers[peer]}, {work}: {text}" for (work, peer), text in results.troubles.items()]
    return "\n".join(lines + ([""] + notes if notes else [])) + "\n"


# ---- plot ------------------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, TOP, BAR = 900, 330, 90, 92, 13
COLOURS = ["#1a7f5a", "#6fbf9b", "#b5d99c", "#8f6bb0"]
CEILING_COLOUR = "#9aa4b1"


def plot(results):
    """Times faster than rclone, one group of bars for each workload, on a logarithmic scale; None without rclone."""
    shown = [peer for peer in results.peers if not peer.startswith(("rclone", "curlftpfs"))]
    groups = []
    for row in results.rows(results.titles):
        rclone = results.rclone(row)
        bars = [(peer, rclone / results.median(row, peer)) for peer in shown if rclone and results.median(row, peer)]
        if any(peer == "ftpfs" for peer, _ in bars):
            groups.append((row, bars))
    if not groups:
        return None
    values = [value for _, bars in groups for _, value in bars]
    low, high = min(0.5, min(values) / 1.1), max(2, max(values) * 1.1)
    across = lambda value: LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)
    colours = dict(zip([peer for peer in shown if peer != "ceiling"], COLOURS * 9), ceiling=CEILING_COLOUR)
    y, body = TOP, []
    for row, bars in groups:
        middle = y + len(bars) * BAR / 2
        label = escape(re.sub("`", "", label_of(results, row)))
        body.append(f'<text x="{LEFT - 12}" y="{middle + 4:.1f}" text-anchor="end">{label}</text>')
        for peer, value in bars:
            start, end = sorted((across(1), across(value)))
            body.append(f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" height="{BAR - 2}" fill="{colours[peer]}"/>')
            text = f"{ratio(value)}"
            weight = ' font-weight="bold"' if peer == "ftpfs" else ""
            body.append(f'<text x="{max(end, across(1)) + 5:.1f}" y="{y + BAR - 3}" font-size="11"{weight}>{text}</text>')
            y += BAR
        y += 10
    bottom = y
    grid = [f'<line x1="{across(tick):.1f}" y1="{TOP - 8}" x2="{across(tick):.1f}" y2="{bottom}" stroke="#dfe3e8"/>'
            f'<text x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle" font-size="11" fill="#57606a">{tick:g}×</text>'
            for tick in ticks(low, high)]
    grid.append(f'<line x1="{across(1):.1f}" y1="{TOP - 8}" x2="{across(1):.1f}" y2="{bottom}" stroke="#24292f" stroke-width="1.5"/>'
                f'<text x="{across(1):.1f}" y="{bottom + 30}" text-anchor="middle" font-size="11">as fast as rclone</text>')
    legend, x = [], LEFT
    for peer in shown:
        name = escape(results.peers[peer])
        legend.append(f'<rect x="{x}" y="{TOP - 28}" width="11" height="11" fill="{colours[peer]}"/>'
                      f'<text x="{x + 16}" y="{TOP - 18}">{name}</text>')
        x += 40 + 7 * len(name)
    height = bottom + 42
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12.5" fill="#24292f">',
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff" stroke="#d0d7de"/>',
        '<text x="20" y="28" font-size="17" font-weight="bold">Times faster than rclone (the better of its cache modes)</text>',
        f'<text x="20" y="47" fill="#57606a">{escape(results.about["short"])}</text>',
        *legend, *grid, *body, "</svg>"]) + "\n"


def label_of(results, row):
    """A row that goes on with another one stands alone here."""
    alone = {"lsr2": "the same ls -lR once more", "smallwrite-returns": "the same until cp -r returns"}
    return alone.get(row, results.titles[row].split(", until the server")[0])


def ticks(low, high):
    steps = (1, 2, 5) if high / low < 200 else (1,)
    marks = [step * 10.0 ** power for power in range(-3, 6) for step in steps]
    return [mark for mark in marks if low <= mark <= high]


# ---- all of it -------------------------------------------------------------------------------------------------------


def version(name, *command):
    """The name, and the first version number that the program tells of itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        return f"{name} {re.search('[0-9]+[.][0-9.]*[0-9]', done.stdout + done.stderr).group()}"
    except (OSError, AttributeError):
        return name


def about(arguments, peers, reps):
    """When, where and with what."""
    names = [version("ftpfs", E["FTPFS"], "--version")]
    if any(peer.name.startswith("rclone") for peer in peers):
        names.append(version("rclone", E["RCLONE"], "version"))
    if any(peer.name == "curlftpfs" for peer in peers):
        names.append(version("curlftpfs", E["CURLFTPFS"], "--version"))
    if any(peer.name == "ceiling" for peer in peers):
        names += [version("curl", "curl", "--version"), version("lftp", "lftp", "--version")]
    far = arguments.rtt > 0 or arguments.rate > 0
    line = f"round trip {arguments.rtt:g} ms" if far else "loopback"
    if arguments.rate:
        line += f", {arguments.rate:g} Mbit/s"
    quick = ", --quick (shows that it works, measures little)" if arguments.quick else ""
    day = datetime.date.today().isoformat()
    samples = f"{reps} fresh mount{'s' if reps > 1 else ''} each{quick}"
    machine = f"{os.cpu_count()} CPUs, Linux {platform.release().split('-')[0]}"
    return {"line": f"{day}: {', '.join(names)}; server {E['BENCH_SERVER']}; {line}; {machine}; {samples}.",
            "short": f"{E['BENCH_SERVER']}, {line} · {', '.join(names)} · {day}"}


def variant(text):
    head, equals, options = text.partition("=")
    name, _, only = head.partition("@")
    works = only.split(",") if only else []
    bad = [work for work in works if work not in WORKLOADS]
    if not re.fullmatch(r"[\w-]+", name) or not equals or bad or name.startswith(("ftpfs", "rclone", "curlftpfs", "ceiling")):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME[@workload,…]=OPTIONS")
    return Peer(name, f"ftpfs {options}", shlex.split(options), works)


def arguments():
    parser = argparse.ArgumentParser(prog="bench", allow_abbrev=False)
    parser.add_argument("--rtt", type=float, default=0)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--server")
    parser.add_argument("--peers", default="")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--reps", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--variant", type=variant, action="append", default=[])
    parser.add_argument("--timeout", type=float, default=120)
    for name in ("--markdown", "--svg", "--json", "--from"):
        parser.add_argument(name, dest=name.strip("-") + "_file")
    parsed = parser.parse_args()
    parsed.workloads = parsed.workloads.split(",")
    if not parsed.rate and "beside" in parsed.workloads:
        if parsed.workloads != WORKLOADS:
            parser.error("beside needs a line that a copy can fill: --rate MBIT")
        parsed.workloads.remove("beside")
    for work in parsed.workloads:
        if work not in WORKLOADS:
            parser.error(f"no such workload: {work}")
    known = {"rclone": "rclone mount", "rclone-full": "rclone, full cache", "curlftpfs": "curlftpfs", "ceiling": "curl, lftp"}
    names = [name for name in parsed.peers.split(",") if name]
    for name in names:
        if name not in known:
            parser.error(f"no such peer: {name}")
    parsed.peers = [Peer("ftpfs", "ftpfs"), *parsed.variant, *(Peer(name, known[name]) for name in names)]
    return parsed


def run(parsed):
    far = parsed.rtt > 5 or 0 < parsed.rate <= 200
    reps = parsed.reps or (1 if far or parsed.quick else 3)
    sizes = Sizes(parsed.quick, far)
    served = Served(sizes)
    served.fill(parsed.workloads)
    bench = Bench(parsed, sizes, served)
    samples, troubles = measure(bench, parsed.peers, parsed.workloads, reps)
    peers = {peer.name: peer.title for peer in parsed.peers}
    return Results(about(parsed, parsed.peers, reps), sizes.titles(), peers, samples, troubles)


def main():
    # So that `finally` is reached, and nothing stays mounted; a second signal does not interrupt that.
    def end(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)
    parsed = arguments()
    results = Results.load(parsed.from_file) if parsed.from_file else run(parsed)
    table = markdown(results)
    print("\n" + table)
    if parsed.json_file:
        results.save(parsed.json_file)
    if parsed.markdown_file:
        with open(parsed.markdown_file, "w") as file:
            file.write(table)
    if parsed.svg_file:
        picture = plot(results)
        if picture is None:
            print("no plot: ftpfs and rclone were not both measured in any workload", file=sys.stderr)
        else:
            with open(parsed.svg_file, "w") as file:
                file.write(picture)
    # What others cannot do is a fact to report; what ftpfs does not do, or not in time, is a failure.
    ours = {"ftpfs"} | {peer.name for peer in parsed.variant}
    return 1 if any(peer in ours for _, peer in results.troubles) else 0


if __name__ == "__main__":
    sys.exit(main())
