// The reference server of the measurements: one file "bo" of SIZE_MIB in anonymous memory through the libfuse low-level
// API, the floor of what a FUSE round trip costs. A second file "requests" has the READs and WRITEs served so far.
//
//   cc -O2 memfs.c -o memfs $(pkg-config --cflags --libs fuse3)
//   ./memfs MNT SIZE_MIB [mt]        mt: the multi-threaded loop with cloned descriptors
#define FUSE_USE_VERSION 314
#define _GNU_SOURCE
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ROOT = 1, BO = 2, REQUESTS = 3 };

static size_t size;
static char *memory;
static atomic_ulong reads, writes;

static void fill(fuse_ino_t ino, struct stat *st)
{
	memset(st, 0, sizeof *st);
	st->st_ino = ino;
	st->st_nlink = 1;
	st->st_mode = ino == ROOT ? S_IFDIR | 0755 : S_IFREG | 0666;
	st->st_size = ino == BO ? (off_t)size : 0;
}

static void memfs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	(void)fi;
	fill(ino, &st);
	fuse_reply_attr(req, &st, 300);
}

static void memfs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	(void)attr;
	(void)to_set;
	memfs_getattr(req, ino, fi);
}

static void memfs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = { .attr_timeout = 300, .entry_timeout = 300 };

	(void)parent;
	entry.ino = !strcmp(name, "bo") ? BO : !strcmp(name, "requests") ? REQUESTS : 0;
	if (!entry.ino) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	fill(entry.ino, &entry.attr);
	fuse_reply_entry(req, &entry);
}

static void memfs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	fi->keep_cache = ino == BO;
	fi->direct_io = ino == REQUESTS;
	fuse_reply_open(req, fi);
}

static void memfs_read(fuse_req_t req, fuse_ino_t ino, size_t length, off_t offset, struct fuse_file_info *fi)
{
	char text[96];

	(void)fi;
	if (ino == REQUESTS) {
		int n = snprintf(text, sizeof text, "{\"read\": %lu, \"write\": %lu}\n", reads, writes);
		fuse_reply_buf(req, text, offset ? 0 : n);
		return;
	}
	reads++;
	if ((size_t)offset >= size)
		length = 0;
	else if (offset + length > size)
		length = size - offset;
	fuse_reply_buf(req, memory + offset, length);
}

static void memfs_write(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *in, off_t offset, struct fuse_file_info *fi)
{
	struct fuse_bufvec out = FUSE_BUFVEC_INIT(fuse_buf_size(in));
	ssize_t done;

	(void)fi;
	writes++;
	if (ino != BO || offset + out.buf[0].size > size) {
		fuse_reply_err(req, EFBIG);
		return;
	}
	out.buf[0].mem = memory + offset;
	done = fuse_buf_copy(&out, in, 0);
	if (done < 0)
		fuse_reply_err(req, -done);
	else
		fuse_reply_write(req, done);
}

static void memfs_init(void *user, struct fuse_conn_info *conn)
{
	(void)user;
	conn->max_background = 64;
}

static const struct fuse_lowlevel_ops operations = {
	.init = memfs_init, .lookup = memfs_lookup, .getattr = memfs_getattr, .setattr = memfs_setattr,
	.open = memfs_open, .read = memfs_read, .write_buf = memfs_write,
};

int main(int argc, char **argv)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct fuse_session *session;

	if (argc < 3) {
		fprintf(stderr, "usage: memfs MNT SIZE_MIB [mt]\n");
		return 2;
	}
	size = (size_t)atoi(argv[2]) << 20;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	madvise(memory, size, MADV_HUGEPAGE);
	memset(memory, 1, size);
	fuse_opt_add_arg(&args, "memfs");
	fuse_opt_add_arg(&args, "-ofsname=memfs,default_permissions");
	session = fuse_session_new(&args, &operations, sizeof operations, NULL);
	if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[1]))
		return 1;
	if (argc > 3) {
		struct fuse_loop_config *config = fuse_loop_cfg_create();
		fuse_loop_cfg_set_clone_fd(config, 1);
		fuse_session_loop_mt(session, config);
	} else {
		fuse_session_loop(session);
	}
	fuse_session_unmount(session);
	fuse_session_destroy(session);
	return 0;
}
