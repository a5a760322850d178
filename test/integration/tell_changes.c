/* Tells of changes in a directory, one line each: "ready", then the event's letters and the name.
 * Runs in containers; linked statically. */
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    _Alignas(struct inotify_event) char block[4096];
    int fd = inotify_init1(IN_CLOEXEC);

    if (argc != 2 || fd < 0 ||
        inotify_add_watch(fd, argv[1], IN_CREATE | IN_MOVED_TO | IN_DELETE) < 0) {
        perror(argv[0]);
        return 1;
    }
    (void)puts("ready");
    (void)fflush(stdout);
    for (;;) {
        ssize_t n = read(fd, block, sizeof(block));
        if (n <= 0)
            return 1;
        for (ssize_t at = 0; at < n;) {
            struct inotify_event e;
            memcpy(&e, block + at, sizeof(e));
            (void)printf("%s %s\n",
                         e.mask & IN_CREATE     ? "create"
                         : e.mask & IN_MOVED_TO ? "move"
                                                : "delete",
                         e.len > 0 ? block + at + sizeof(e) : "");
            at += (ssize_t)(sizeof(e) + e.len);
        }
        (void)fflush(stdout);
    }
}
