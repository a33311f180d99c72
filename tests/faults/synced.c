/* Preloaded into a server: writes down what reaches the disk.
 *
 * For each fsync, fdatasync, rename and mkdir below SYNCED_ROOT a line goes to SYNCED_TRACE. Of files
 * named trainwire.db* SYNCED_COPIES gets, at each sync, a copy of what is on the disk from then on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_below_root(const char *path) {
    const char *root = getenv("SYNCED_ROOT");
    return root && strncmp(path, root, strlen(root)) == 0;
}

static void note(const char *what, const char *first, const char *second) {
    char line[2 * PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", what, first, second);
    int trace = open(getenv("SYNCED_TRACE"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (trace < 0 || write(trace, line, length) != length) abort();
    close(trace);
}

static void copy(const char *path, const char *name) {
    static char data[1 << 16];
    char partial[PATH_MAX], target[PATH_MAX];
    snprintf(target, sizeof target, "%s/%s", getenv("SYNCED_COPIES"), name);
    snprintf(partial, sizeof partial, "%s.partial", target);
    int in = open(path, O_RDONLY | O_CLOEXEC);
    int out = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (in < 0 || out < 0) abort();
    for (ssize_t size; (size = read(in, data, sizeof data)) > 0;)
        if (write(out, data, size) != size) abort();
    close(in);
    close(out);
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    if (real(partial, target) != 0) abort();
}

static int synced(const char *function, int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, function);
    int result = real(fd), before = errno;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (result == 0 && length > 0) {
        path[length] = 0;
        const char *name = strrchr(path, '/') + 1;
        if (is_below_root(path)) {
            if (strncmp(name, "trainwire.db", 12) == 0) copy(path, name);
            note("sync", path, "");
        }
    }
    errno = before;
    return result;
}

int fsync(int fd) { return synced("fsync", fd); }

int fdatasync(int fd) { return synced("fdatasync", fd); }

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    int result = real(from, to), before = errno;
    if (result == 0 && is_below_root(to)) note("rename", from, to);
    errno = before;
    return result;
}

int mkdir(const char *path, mode_t mode) {
    int (*real)(const char *, mode_t) = dlsym(RTLD_NEXT, "mkdir");
    int result = real(path, mode), before = errno;
    if (result == 0 && is_below_root(path)) note("mkdir", path, "");
    errno = before;
    return result;
}
