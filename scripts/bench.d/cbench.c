// The client of the measurements: times one kind of access to FILE and prints "NAME VALUE UNIT" lines.
//
//   cc -O2 cbench.c -o cbench -lpthread
//   ./cbench FILE fuse|tmpfs TEST...
//
// fuse: the file's cached pages are written back and dropped before every cold test; tmpfs: there is nothing to drop.
// Tests: fault1 fault4 fault16 (4 KiB random faults with 1, 4 and 16 threads, at least 64 KiB apart so that fault-around
// does not serve them, MADV_RANDOM), fault4p (the same with 4 processes), sequential (MADV_SEQUENTIAL), normal (plain
// sequential mmap), populate, pread, hot (cached pread), pwrite, pwrite4k, direct (O_DIRECT 1 MiB and 4 KiB), memset
// (through the mapping, with msync), storm (4 threads touch random pages for 4 s: what the slowest touches took while
// somebody else takes the pages away).
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define SPACING 65536ul
#define BLOCK (1ul << 20)
#define MAX_THREADS 64
#define STORM_SECONDS 4.0
#define STORM_THREADS 4
#define SLOW 20e-3

static const char *path;
static size_t size;
static int cached;
static char *block;
static volatile unsigned long sink;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_file(int flags)
{
	int fd = open(path, O_RDWR | flags);

	if (fd < 0)
		fail(path);
	return fd;
}

static int open_cold(int flags)
{
	int fd = open_file(0);

	if (!cached) {
		if (fsync(fd))
			fail("fsync");
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	}
	if (!flags)
		return fd;
	close(fd);
	return open_file(flags);
}

static char *map(int fd)
{
	char *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (m == MAP_FAILED)
		fail("mmap");
	return m;
}

static void throughput(const char *name, double seconds)
{
	printf("%s %.4f GB/s\n", name, size / seconds / 1e9);
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

struct thread {
	pthread_t id;
	char *map;
	const size_t *page;
	int count;
	double *latency;
};

static void *touch_pages(void *argument)
{
	struct thread *t = argument;

	for (int i = 0; i < t->count; i++) {
		double begin = now();
		sink += t->map[t->page[i] * PAGE];
		t->latency[i] = now() - begin;
	}
	return NULL;
}

static size_t *shuffled_pages(size_t slots)
{
	size_t *page = malloc(slots * sizeof *page);

	srand(1);
	for (size_t i = 0; i < slots; i++)
		page[i] = i * (SPACING / PAGE);
	for (size_t i = slots - 1; i > 0; i--) {
		size_t j = ((size_t)rand() << 15 ^ rand()) % (i + 1), swap = page[i];
		page[i] = page[j];
		page[j] = swap;
	}
	return page;
}

// Memory that children of this process write to as well.
static double *shared_latencies(size_t count)
{
	void *m = mmap(NULL, count * sizeof(double), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (m == MAP_FAILED)
		fail("mmap");
	return m;
}

static void wait_for_children(int count)
{
	int status;

	while (count-- > 0)
		if (wait(&status) < 0 || status)
			fail("a process of the test");
}

// Random faults by `workers` threads, or by as many processes, each with a mapping of its own.
static void faults(const char *name, int workers, int processes)
{
	size_t slots = size / SPACING;
	int count = slots / workers, total = count * workers;
	size_t *page = shuffled_pages(slots);
	double *latency = shared_latencies(total), begin, seconds;
	struct thread t[MAX_THREADS];
	int fd = open_cold(0);
	char *m = map(fd);

	madvise(m, size, MADV_RANDOM);
	begin = now();
	for (int k = 0; k < workers; k++) {
		t[k] = (struct thread){ .map = m, .page = page + (size_t)k * count, .count = count,
					.latency = latency + (size_t)k * count };
		if (!processes) {
			if (pthread_create(&t[k].id, NULL, touch_pages, &t[k]))
				fail("pthread_create");
		} else if (fork() == 0) {
			touch_pages(&t[k]);
			_exit(0);
		}
	}
	if (processes)
		wait_for_children(workers);
	else
		for (int k = 0; k < workers; k++)
			pthread_join(t[k].id, NULL);
	seconds = now() - begin;
	qsort(latency, total, sizeof *latency, ascending);
	printf("%s %.3f us\n", name, seconds / total * 1e6);
	printf("%s_p50 %.3f us\n", name, latency[total / 2] * 1e6);
	printf("%s_p99 %.3f us\n", name, latency[(size_t)total * 99 / 100] * 1e6);
	munmap(m, size);
	munmap(latency, total * sizeof *latency);
	close(fd);
	free(page);
}

struct touches {
	pthread_t id;
	char *map;
	unsigned int seed;
	double longest;
	long slow;
};

static void *touch_until(void *argument)
{
	struct touches *t = argument;
	double end = now() + STORM_SECONDS, begin, took;

	while ((begin = now()) < end) {
		size_t at = ((size_t)rand_r(&t->seed) << 15 ^ rand_r(&t->seed)) % (size / PAGE) * PAGE;
		sink += t->map[at];
		took = now() - begin;
		t->longest = took > t->longest ? took : t->longest;
		t->slow += took > SLOW;
	}
	return NULL;
}

static void storm(void)
{
	struct touches t[STORM_THREADS];
	double longest = 0;
	long slow = 0;
	int fd = open_file(0);
	char *m = map(fd);

	madvise(m, size, MADV_RANDOM);
	for (int k = 0; k < STORM_THREADS; k++) {
		t[k] = (struct touches){ .map = m, .seed = k + 1 };
		if (pthread_create(&t[k].id, NULL, touch_until, &t[k]))
			fail("pthread_create");
	}
	for (int k = 0; k < STORM_THREADS; k++) {
		pthread_join(t[k].id, NULL);
		longest = t[k].longest > longest ? t[k].longest : longest;
		slow += t[k].slow;
	}
	printf("storm_longest %.3f ms\n", longest * 1e3);
	printf("storm_slow %ld touches\n", slow);
	munmap(m, size);
	close(fd);
}

static void walk(const char *name, int advice)
{
	int fd = open_cold(0);
	char *m = map(fd);
	double begin;

	madvise(m, size, advice);
	begin = now();
	for (size_t at = 0; at < size; at += PAGE)
		sink += m[at];
	throughput(name, now() - begin);
	munmap(m, size);
	close(fd);
}

static void populate(void)
{
	int fd = open_cold(0);
	char *m = map(fd);
	double begin = now();

	if (madvise(m, size, MADV_POPULATE_READ))
		fail("MADV_POPULATE_READ");
	throughput("populate", now() - begin);
	munmap(m, size);
	close(fd);
}

static void transfer(const char *name, int fd, int writing)
{
	double begin = now();

	for (size_t at = 0; at < size; at += BLOCK) {
		size_t length = size - at < BLOCK ? size - at : BLOCK;
		ssize_t done = writing ? pwrite(fd, block, length, at) : pread(fd, block, length, at);
		if (done != (ssize_t)length)
			fail(name);
	}
	throughput(name, now() - begin);
	close(fd);
}

static void small(const char *name, int fd, int writing)
{
	const int count = 4000;
	double begin = now();

	for (int i = 0; i < count; i++) {
		off_t at = (size_t)i * 2 * PAGE % size;
		if ((writing ? pwrite(fd, block, PAGE, at) : pread(fd, block, PAGE, at)) != (ssize_t)PAGE)
			fail(name);
	}
	printf("%s %.3f us\n", name, (now() - begin) / count * 1e6);
	close(fd);
}

static void direct(void)
{
	if (cached)
		return;
	transfer("direct_read", open_cold(O_DIRECT), 0);
	transfer("direct_write", open_cold(O_DIRECT), 1);
	small("direct_read4k", open_cold(O_DIRECT), 0);
}

static void dirty(void)
{
	int fd = open_cold(0);
	char *m = map(fd);
	double begin = now();

	memset(m, 7, size);
	throughput("memset", now() - begin);
	begin = now();
	if (msync(m, size, MS_SYNC))
		fail("msync");
	printf("msync %.3f ms\n", (now() - begin) * 1e3);
	munmap(m, size);
	close(fd);
}

static int run(const char *test)
{
	if (!strcmp(test, "fault1"))
		faults(test, 1, 0);
	else if (!strcmp(test, "fault4"))
		faults(test, 4, 0);
	else if (!strcmp(test, "fault16"))
		faults(test, 16, 0);
	else if (!strcmp(test, "fault4p"))
		faults(test, 4, 1);
	else if (!strcmp(test, "storm"))
		storm();
	else if (!strcmp(test, "sequential"))
		walk("sequential", MADV_SEQUENTIAL);
	else if (!strcmp(test, "normal"))
		walk("normal", MADV_NORMAL);
	else if (!strcmp(test, "populate"))
		populate();
	else if (!strcmp(test, "pread"))
		transfer("pread", open_cold(0), 0);
	else if (!strcmp(test, "hot"))
		transfer("hot", open_file(0), 0);
	else if (!strcmp(test, "pwrite"))
		transfer("pwrite", open_file(0), 1);
	else if (!strcmp(test, "pwrite4k"))
		small("pwrite4k", open_file(0), 1);
	else if (!strcmp(test, "direct"))
		direct();
	else if (!strcmp(test, "memset"))
		dirty();
	else
		return -1;
	return 0;
}

int main(int argc, char **argv)
{
	struct stat st;

	if (argc < 4) {
		fprintf(stderr, "usage: cbench FILE fuse|tmpfs TEST...\n");
		return 2;
	}
	path = argv[1];
	cached = !strcmp(argv[2], "tmpfs");
	if (stat(path, &st))
		fail(path);
	size = st.st_size;
	if (size < 4 * SPACING || posix_memalign((void **)&block, PAGE, BLOCK)) {
		fprintf(stderr, "%s is too small\n", path);
		return 2;
	}
	memset(block, 3, BLOCK);
	setbuf(stdout, NULL);
	for (int i = 3; i < argc; i++)
		if (run(argv[i])) {
			fprintf(stderr, "no test %s\n", argv[i]);
			return 2;
		}
	return 0;
}
