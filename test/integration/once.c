/* Changes files in the working directory and below until there is a file "stop", and looks after
 * each step whether what it was told is what came of it, whatever happens to the server meanwhile.
 * Prints one line. Runs in containers; linked statically. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static long round_;

static void wrong(const char *format, ...)
{
    va_list args;
    int e = errno;
    va_start(args, format);
    (void)printf("round %ld: ", round_);
    (void)vprintf(format, args);
    (void)printf(" (%s)\n", strerror(e));
    va_end(args);
    exit(1);
}

#define MUST(call)                                                                                 \
    do {                                                                                           \
        errno = 0;                                                                                 \
        if ((call) < 0)                                                                            \
            wrong("%s", #call);                                                                    \
    } while (0)

#define MUST_FAIL(call, why)                                                                       \
    do {                                                                                           \
        errno = 0;                                                                                 \
        if ((call) >= 0 || errno != (why))                                                         \
            wrong("%s did not fail with " #why, #call);                                            \
    } while (0)

static void put(const char *name, const char *text, int flags)
{
    int fd = open(name, O_WRONLY | flags, 0640);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        wrong("write %s", name);
    MUST(close(fd));
}

static void expect(const char *name, const char *text)
{
    char is[64];
    int fd = open(name, O_RDONLY);
    ssize_t n = fd >= 0 ? read(fd, is, sizeof(is) - 1) : -1;
    if (n < 0)
        wrong("read %s", name);
    is[n] = '\0';
    if (strcmp(is, text) != 0)
        wrong("%s is \"%s\", not \"%s\"", name, is, text);
    MUST(close(fd));
}

static void change(void)
{
    struct stat st;
    MUST(mkdir("dir", 0700));
    MUST_FAIL(mkdir("dir", 0700), EEXIST);
    put("dir/a", "a", O_CREAT | O_EXCL);
    MUST_FAIL(open("dir/a", O_CREAT | O_EXCL | O_WRONLY, 0600), EEXIST);
    put("dir/b", "b", O_CREAT | O_EXCL);
    MUST(renameat2(AT_FDCWD, "dir/a", AT_FDCWD, "dir/b", RENAME_EXCHANGE));
    expect("dir/a", "b");
    expect("dir/b", "a");
    MUST_FAIL(renameat2(AT_FDCWD, "dir/a", AT_FDCWD, "dir/b", RENAME_NOREPLACE), EEXIST);
    MUST(link("dir/a", "dir/c"));
    MUST(stat("dir/c", &st));
    if (st.st_nlink != 2)
        wrong("%d links", (int)st.st_nlink);
    put("dir/c", "longer", O_TRUNC);
    expect("dir/a", "longer");
    put("dir/c", " and more", O_APPEND);
    expect("dir/a", "longer and more");
    MUST(truncate("dir/c", 3));
    MUST(rename("dir/c", "moved"));
    expect("moved", "lon");
    MUST_FAIL(rename("dir/c", "moved"), ENOENT);
    MUST(symlink("moved", "dir/l"));
    MUST(rename("dir/b", "moved"));
    expect("moved", "a");
    MUST(unlink("dir/l"));
    MUST_FAIL(unlink("dir/l"), ENOENT);
    MUST(unlink("moved"));
    MUST(unlink("dir/a"));
    MUST(rmdir("dir"));
    MUST_FAIL(rmdir("dir"), ENOENT);
}

int main(void)
{
    char line[32];
    int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    int kept = open("kept", O_RDWR | O_CREAT, 0600);
    if (log < 0 || kept < 0)
        wrong("open");
    while (access("stop", F_OK) != 0) {
        round_++;
        int n = snprintf(line, sizeof(line), "%ld\n", round_);
        if (write(log, line, (size_t)n) != n)
            wrong("append");
        if (pwrite(kept, &round_, sizeof(round_), 0) != sizeof(round_))
            wrong("write to an open file");
        change();
        long was = 0;
        if (pread(kept, &was, sizeof(was), 0) != sizeof(was) || was != round_)
            wrong("an open file has %ld", was);
    }
    (void)printf("%ld rounds\n", round_);
    return 0;
}
