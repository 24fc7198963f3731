"""Kills ftpfs at random moments while programs write, mounts again, and looks at the server.

Started by scripts/crash. A worker records which calls of close and rename succeeded; after each kill
and the next mount every file is as the last call that succeeded left it, or as the one under way would
have: whole, once, and under no name that nobody made.
"""
import argparse, errno, json, os, random, signal, subprocess, sys, threading, time

PATIENCE = 60
# A kill in the middle of everything: after the first files, before the last.
LONGEST = 1.2


class Op:
    """One change of one file; `wants` is what it leaves under each name, None: absent."""

    def __init__(self, kind, wants, before):
        self.kind, self.wants, self.before = kind, wants, before

    def __str__(self):
        return f"{self.kind} of {', '.join(self.wants)}"


def content(number, length):
    """Differs from all others at every place."""
    block = b"%08x-" % number
    return (block * (length // len(block) + 1))[:length]


class Worker(threading.Thread):
    """Writes files whose names begin with its own letter, until a call fails."""

    def __init__(self, letter, mount, files, seed):
        super().__init__()
        self.letter, self.mount, self.files = letter, mount, files
        self.random, self.count = random.Random(seed), seed % 1_000_000 * 1000
        self.under_way, self.failed, self.done = None, None, 0
        self.stop = False

    def run(self):
        while not self.stop:
            try:
                self.step()
                self.done += 1
            except OSError as error:
                self.failed = error
                return

    def step(self):
        self.count += 1
        name = f"{self.letter}{self.random.randrange(8)}"
        sizes = [0, 9, 700, 5_000, 60_000, 300_000, 1_300_000, 3_000_000]
        length = sizes[self.random.choices(range(8), [1, 3, 6, 6, 5, 4, 2, 1])[0]]
        data = content(self.count, length)
        old = self.files.get(name)
        kind = self.random.choice(["write", "write", "replace", "append", "patch", "remove"])
        if kind == "write":
            self.do(kind, {name: data}, lambda: self.write(name, os.O_TRUNC, [(None, data)]))
        elif kind == "append" and old is not None:
            self.do(kind, {name: old + data}, lambda: self.write(name, os.O_APPEND, [(None, data)]))
        elif kind == "patch" and old:
            at, data = self.random.randrange(len(old)), data[:2000]
            new = old[:at] + data + old[at + len(data):]
            self.do(kind, {name: new}, lambda: self.write(name, 0, [(at, data)]))
        elif kind == "replace":
            temporary = name + ".tmp"
            self.do("write", {temporary: data}, lambda: self.write(temporary, os.O_TRUNC, [(None, data)]))
            here, there = os.path.join(self.mount, temporary), os.path.join(self.mount, name)
            self.do("rename", {temporary: None, name: data}, lambda: os.rename(here, there))
        elif kind == "remove" and old is not None and self.random.random() < 0.3:
            self.do("remove", {name: None}, lambda: os.unlink(os.path.join(self.mount, name)))

    def do(self, kind, wants, call):
        self.under_way = Op(kind, wants, {name: self.files.get(name) for name in wants})
        call()
        for name, data in wants.items():
            if data is None:
                self.files.pop(name, None)
            else:
                self.files[name] = data
        self.under_way = None

    def write(self, name, flags, parts):
        descriptor = os.open(os.path.join(self.mount, name), os.O_WRONLY | os.O_CREAT | flags, 0o644)
        try:
            for at, data in parts:
                if at is not None:
                    os.lseek(descriptor, at, os.SEEK_SET)
                while data:
                    length = self.random.choice([4096, 65536, 200_000])
                    os.write(descriptor, data[:length])
                    data = data[length:]
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


class World:
    def __init__(self, options):
        self.options, self.work = options, options.work
        self.mount = os.path.join(self.work, "mnt")
        self.process, self.wrong = None, []
        self.environment = dict(os.environ)
        for variable, name in ("HOME", "home"), ("XDG_RUNTIME_DIR", "run"), ("XDG_CACHE_HOME", "cache"):
            path = os.path.join(self.work, name)
            os.makedirs(path, mode=0o700, exist_ok=True)
            self.environment[variable] = path
        os.makedirs(self.mount, exist_ok=True)

    def begin(self):
        words = [self.options.ftpfs, "mount", "--foreground", *self.options.mount_options.split()]
        with open(os.path.join(self.work, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [*words, self.options.url, self.mount], env=self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log)
        self.wait("mounted", lambda: os.path.ismount(self.mount))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def detach(self):
        """When nobody works any more: who did would work in the directory below."""
        subprocess.run(["umount", "-l", self.mount], check=False, stderr=subprocess.DEVNULL)

    def end(self):
        said = subprocess.run([self.options.ftpfs, "umount", self.mount], env=self.environment,
                              capture_output=True, text=True)
        if said.returncode:
            self.wrong.append(f"umount: {said.stderr.strip()}")
        self.wait("ended", lambda: self.process.poll() is not None)

    def wait(self, what, condition):
        until = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > until:
                raise SystemExit(f"crash: waited {PATIENCE} s in vain until it is {what}")
            time.sleep(0.02)

    def is_all_sent(self):
        """Nothing pending, and nothing that an earlier process left is still to be sent."""
        said = subprocess.run([self.options.ftpfs, "status", "--json"], env=self.environment,
                              capture_output=True, text=True)
        reports = json.loads(said.stdout) if not said.returncode else []
        mine = [report for report in reports if report["mountpoint"] == self.mount]
        # None: it is mounted, and not yet ready to be asked.
        if not mine or mine[0]["pending"]:
            return False
        # What earlier mounts left is told to people only.
        said = subprocess.run([self.options.ftpfs, "status"], env=self.environment,
                              capture_output=True, text=True)
        return "unsent" not in said.stdout

    def staged(self):
        found = []
        for directory, _, names in os.walk(os.path.join(self.work, "cache")):
            found += [os.path.join(directory, name) for name in names]
        return found

    def served(self):
        """The server's own files."""
        files = {}
        for name in os.listdir(self.options.served):
            with open(os.path.join(self.options.served, name), "rb") as file:
                files[name] = file.read()
        return files


def brief(data):
    return "absent" if data is None else f"{len(data)} bytes {data[:9]!r}"


def compare(world, workers):
    """What is there must be what succeeded; of what was under way all or nothing."""
    there, strays = world.served(), []
    really = dict(there)
    for name in list(there):
        if name.startswith(".ftpfs-") and name.endswith("~"):
            strays.append(name)
            del there[name]
    for worker in workers:
        op, mine = worker.under_way, lambda name: name[0] == worker.letter
        allowed = [dict(worker.files)]
        if op:
            after = {**worker.files, **op.wants}
            allowed.append({name: data for name, data in after.items() if data is not None})
            # An emptied file is what open with O_TRUNC leaves; of a file that was never closed
            # nothing more was promised.
        is_there = {name: data for name, data in there.items() if mine(name)}
        worker_has = {name: data for name, data in really.items() if name in is_there}
        if is_there in allowed:
            worker.files.clear()
            worker.files.update(worker_has)
            continue
        for name in sorted({*is_there, *allowed[0]}):
            if is_there.get(name) not in [state.get(name) for state in allowed]:
                states = " or ".join(brief(state.get(name)) for state in allowed)
                world.wrong.append(f"{name} is {brief(is_there.get(name))}, not {states}; under way: {op}")
        worker.files.clear()
        worker.files.update(is_there)
    others = [name for name in there if name[0] not in [worker.letter for worker in workers]]
    if others:
        world.wrong.append(f"nobody made {others}")
    return strays


def main():
    parser = argparse.ArgumentParser()
    for name in "ftpfs", "work", "served", "url":
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--mount-options", default="")
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    chance, world = random.Random(options.seed), World(options)
    contents = {letter: {} for letter in "abcdefgh"[:options.workers]}
    changes, under_way, strays, staged = 0, 0, [], 0
    world.begin()
    for number in range(options.times):
        workers = [Worker(letter, world.mount, files, options.seed + number * 10 + index)
                   for index, (letter, files) in enumerate(contents.items())]
        for worker in workers:
            worker.start()
        time.sleep(chance.uniform(0.02, LONGEST))
        world.kill()
        for worker in workers:
            worker.stop = True
        for worker in workers:
            worker.join(PATIENCE)
            if worker.is_alive():
                raise SystemExit("crash: a call hangs after the kill")
            fine = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT, errno.EEXIST)
            if worker.failed and worker.failed.errno not in fine:
                world.wrong.append(f"kill {number}: a call failed: {worker.failed}")
            changes += worker.done
            under_way += worker.under_way is not None
        world.detach()
        world.begin()
        world.wait("sent", world.is_all_sent)
        before = len(world.wrong)
        strays = compare(world, workers)
        staged = len(world.staged())
        if len(world.wrong) > before:
            print(f"still staged: {[os.path.basename(path) for path in world.staged()]}")
        for index in range(before, len(world.wrong)):
            world.wrong[index] = f"kill {number}: {world.wrong[index]}"
            print("WRONG " + world.wrong[index], flush=True)
    world.end()
    left = [path for path in world.staged() if "staging" in path]
    print(f"{options.times} kills, {changes} changes succeeded, {under_way} were under way")
    if strays or left:
        print(f"left at the end: {len(strays)} of our own names on the server, {len(left)} staged files here")
        for path in left:
            with open(path, "rb") as file:
                print(f"  {os.path.basename(path)}: {os.path.getsize(path)} bytes, {file.read(300)}")
        world.wrong.append("something is left")
    print(f"crash: {len(world.wrong)} wrong")
    return bool(world.wrong)


sys.exit(main())
