"""A client of a toy mount: maps FILE shared and obeys one JSON command a line on stdin (no import of ttmfs)."""

import json
import mmap
import os
import sys
import threading


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    fd = os.open(path, os.O_RDWR)
    if threads:  # so many preads of different pages at once, then end
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        workers = [threading.Thread(target=os.pread, args=(fd, 4096, i * 65536)) for i in range(threads)]
        for worker in workers:
            worker.start()
        print(json.dumps({"ready": True}), flush=True)
        for worker in workers:
            worker.join()
        return
    memory = mmap.mmap(fd, os.fstat(fd).st_size)
    memory.madvise(mmap.MADV_RANDOM)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "load":
            answer = memory[arguments[0]]
        elif name == "store":
            first, count, value = arguments
            memory[first : first + count] = bytes([value]) * count
            answer = True
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
