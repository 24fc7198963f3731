"""System calls as programs make them, for programs that cannot be started in a test.

    patterns.py NAME DIRECTORY      works in that directory; what must be there at the end is written to
                                    DIRECTORY/expected… by name: the caller compares

Prints `NAME LENGTH` never: silence is success, an exception is failure.
"""
import ctypes, errno, fcntl, mmap, os, subprocess, sys

BIG = b"".join(b"%07d\n" % index for index in range(60_000))


def put(path, data, flags=os.O_TRUNC, sync=False):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:65536]):]
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)


def get(path):
    with open(path, "rb") as file:
        return file.read()


def gedit(at):
    """g_file_replace: a temporary file beside, fsync, the old one renamed to a backup, rename over."""
    put(f"{at}/text", b"first\n")
    for text in b"second\n", b"third and last\n":
        put(f"{at}/.goutputstream-XYZ", text, os.O_EXCL, sync=True)
        os.chmod(f"{at}/.goutputstream-XYZ", 0o640)
        if os.path.exists(f"{at}/text~"):
            os.unlink(f"{at}/text~")
        os.rename(f"{at}/text", f"{at}/text~")
        os.rename(f"{at}/.goutputstream-XYZ", f"{at}/text")
    return {"text": b"third and last\n", "text~": b"second\n"}


def libreoffice(at):
    """A lock file, a temporary one that grows by seeks, a rename over the document that stays open."""
    put(f"{at}/doc.odt", b"old " * 50_000)
    put(f"{at}/.~lock.doc.odt#", b",user,host,24.11.2026 10:00,file:///;", os.O_EXCL)
    reader = os.open(f"{at}/doc.odt", os.O_RDONLY)
    assert os.read(reader, 4) == b"old "
    descriptor = os.open(f"{at}/lu1234.tmp", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, b"\0" * 30)
    for start in range(0, len(BIG), 30_000):
        os.write(descriptor, BIG[start:start + 30_000])
    # The head of the archive is written last.
    os.pwrite(descriptor, b"PK head of thirty bytes.......", 0)
    os.fsync(descriptor)
    # It is renamed while it is still open.
    os.rename(f"{at}/lu1234.tmp", f"{at}/doc.odt")
    os.pwrite(descriptor, b"PK HEAD", 0)
    os.close(descriptor)
    assert os.pread(reader, 4, 100_000) == b"old ", "who has the old one open goes on with it"
    os.close(reader)
    os.unlink(f"{at}/.~lock.doc.odt#")
    return {"doc.odt": b"PK HEAD of thirty bytes......." + BIG}


def mapped(at):
    """Two processes map one file, shared; msync; then one grows it."""
    put(f"{at}/map", BIG)
    code = ("import mmap, os, sys\n"
            "file = os.open(sys.argv[1], os.O_RDWR)\n"
            "with mmap.mmap(file, 0) as view:\n"
            "    view[100_000:100_005] = b'CHILD'\n"
            "    view.flush()\n")
    file = os.open(f"{at}/map", os.O_RDWR)
    with mmap.mmap(file, 0) as view:
        view[0:6] = b"PARENT"
        view[len(BIG) - 3:] = b"END"
        view.flush()
        subprocess.run([sys.executable, "-c", code, f"{at}/map"], check=True)
        assert view[100_000:100_005] == b"CHILD"
    os.ftruncate(file, len(BIG) + 4096)
    with mmap.mmap(file, 0) as view:
        view[-4:] = b"tail"
    os.close(file)
    wanted = bytearray(BIG + bytes(4092) + b"tail")
    wanted[0:6], wanted[100_000:100_005] = b"PARENT", b"CHILD"
    wanted[len(BIG) - 3:len(BIG)] = b"END"
    return {"map": bytes(wanted)}


def two_descriptors(at):
    """What one writes the other reads at once; each close sends what both wrote."""
    one = os.open(f"{at}/two", os.O_RDWR | os.O_CREAT, 0o644)
    other = os.open(f"{at}/two", os.O_RDWR)
    os.write(one, b"0123456789")
    assert os.pread(other, 10, 0) == b"0123456789"
    os.pwrite(other, b"ab", 4)
    assert os.pread(one, 10, 0) == b"0123ab6789"
    os.close(other)
    os.pwrite(one, b"!", 12)
    os.close(one)
    return {"two": b"0123ab6789\0\0!"}


def after_unlink(at):
    """A temporary file that nobody else can find."""
    put(f"{at}/gone", BIG)
    for flags in 0, os.O_TRUNC:
        descriptor = os.open(f"{at}/gone", os.O_RDWR | os.O_CREAT | flags, 0o600)
        os.unlink(f"{at}/gone")
        os.pwrite(descriptor, b"written after unlink", 5)
        assert os.pread(descriptor, 20, 5) == b"written after unlink"
        if not flags:
            assert os.pread(descriptor, 8, 80_000) == BIG[80_000:80_008]
        os.close(descriptor)
        assert not os.path.exists(f"{at}/gone")
    return {}


def append_by_two(at):
    """Two processes append lines to one log at the same time, each with its own descriptor."""
    code = ("import os, sys\n"
            "file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)\n"
            "for number in range(300):\n"
            "    os.write(file, b'%s %03d\\n' % (sys.argv[2].encode(), number))\n"
            "os.close(file)\n")
    both = [subprocess.Popen([sys.executable, "-c", code, f"{at}/log", name]) for name in ("a", "b")]
    assert [process.wait() for process in both] == [0, 0]
    lines = get(f"{at}/log").splitlines()
    for name in b"a", b"b":
        assert [line for line in lines if line[:1] == name] == [b"%s %03d" % (name, n) for n in range(300)]
    return {"log": b"\n".join(lines) + b"\n"}


def grow(at):
    """ftruncate to a larger size, before and after bytes are written."""
    put(f"{at}/grow", b"head")
    descriptor = os.open(f"{at}/grow", os.O_RDWR)
    os.ftruncate(descriptor, 300_000)
    assert os.pread(descriptor, 10, 299_990) == bytes(10)
    os.pwrite(descriptor, b"middle", 150_000)
    os.ftruncate(descriptor, 200_000)
    os.ftruncate(descriptor, 250_000)
    os.close(descriptor)
    return {"grow": b"head" + bytes(149_996) + b"middle" + bytes(99_994)}


def rotate(at):
    """A log is renamed under the writer, who goes on; a new one begins."""
    descriptor = os.open(f"{at}/app.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, b"before\n")
    os.rename(f"{at}/app.log", f"{at}/app.log.1")
    os.write(descriptor, b"after\n")
    put(f"{at}/app.log", b"new\n", os.O_EXCL)
    os.close(descriptor)
    return {"app.log": b"new\n", "app.log.1": b"before\nafter\n"}


def lock_file(at):
    """O_EXCL: of two one gets it."""
    put(f"{at}/index.lock", b"mine", os.O_EXCL)
    try:
        put(f"{at}/index.lock", b"theirs", os.O_EXCL)
        raise AssertionError("two have the lock")
    except OSError as error:
        assert error.errno == errno.EEXIST
    os.rename(f"{at}/index.lock", f"{at}/index")
    put(f"{at}/index.lock", b"again", os.O_EXCL)
    os.unlink(f"{at}/index.lock")
    return {"index": b"mine"}


def locks(at):
    """fcntl and flock between two processes of this machine."""
    put(f"{at}/db", b"x" * 100)
    code = ("import errno, fcntl, os, sys\n"
            "file = os.open(sys.argv[1], os.O_RDWR)\n"
            "call = fcntl.lockf if sys.argv[2] == 'fcntl' else fcntl.flock\n"
            "try:\n"
            "    call(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "    sys.exit(0)\n"
            "except OSError as error:\n"
            "    sys.exit(7 if error.errno in (errno.EAGAIN, errno.EACCES) else 1)\n")
    for kind, call in ("fcntl", fcntl.lockf), ("flock", fcntl.flock):
        file = os.open(f"{at}/db", os.O_RDWR)
        other = [sys.executable, "-c", code, f"{at}/db", kind]
        call(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert subprocess.run(other).returncode == 7, f"{kind}: two have the lock"
        call(file, fcntl.LOCK_UN)
        assert subprocess.run(other).returncode == 0, f"{kind}: nobody has it"
        os.close(file)
    return {"db": b"x" * 100}


def database(at):
    """Pages here and there, each followed by fdatasync, as databases write them."""
    pages = 64
    put(f"{at}/pages", bytes(4096) * pages)
    wanted = bytearray(4096 * pages)
    descriptor = os.open(f"{at}/pages", os.O_RDWR)
    for number in range(12):
        page = number * 29 % pages
        data = bytes([number + 1]) * 4096
        os.pwrite(descriptor, data, page * 4096)
        wanted[page * 4096:(page + 1) * 4096] = data
        os.fdatasync(descriptor)
    os.close(descriptor)
    return {"pages": bytes(wanted)}


def copy_range(at):
    """A hole made by a seek, and a copy by the kernel."""
    put(f"{at}/from", BIG)
    source, target = os.open(f"{at}/from", os.O_RDONLY), os.open(f"{at}/to", os.O_RDWR | os.O_CREAT, 0o644)
    os.lseek(target, 5000, os.SEEK_SET)
    left = 100_000
    while left:
        left -= os.sendfile(target, source, None, left)
    os.close(source), os.close(target)
    return {"from": BIG, "to": bytes(5000) + BIG[:100_000]}


def main():
    name, at, expected = sys.argv[1:]
    for path, data in globals()[name](at).items():
        with open(os.path.join(expected, path), "wb") as file:
            file.write(data)


main()
