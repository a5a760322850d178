/* What POSIX and Linux say of files, tried in one directory: posix DIR. One line per check, "ok
 * NAME" or "differs NAME: how". Runs in containers; linked statically. The end is status 0 in
 * either case. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static char why[400];

/* The first thing that is not as it should be ends a check. */
#define IS(what)                                                                                   \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            (void)snprintf(why, sizeof(why), "line %d: %s: %s", __LINE__, #what, strerror(errno)); \
            return;                                                                                \
        }                                                                                          \
    } while (0)
#define FAILS(call, code) IS((errno = 0, (call) < 0) && errno == (code))

static int make(const char *name, const char *text)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0 && write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        return -1;
    return fd;
}

static bool holds(const char *name, const char *text)
{
    char data[256];
    int fd = open(name, O_RDONLY);
    ssize_t n = read(fd, data, sizeof(data));
    (void)close(fd);
    return n == (ssize_t)strlen(text) && memcmp(data, text, (size_t)n) == 0;
}

static ino_t inode(const char *name)
{
    struct stat st;
    return lstat(name, &st) == 0 ? st.st_ino : 0;
}

static void open_flags(void)
{
    FAILS(open("f", O_RDONLY), ENOENT);
    IS(close(make("f", "text")) == 0);
    FAILS(open("f", O_CREAT | O_EXCL | O_WRONLY, 0600), EEXIST);
    FAILS(open("f/x", O_RDONLY), ENOTDIR);
    FAILS(open(".", O_WRONLY), EISDIR);
    FAILS(open("f", O_RDONLY | O_DIRECTORY), ENOTDIR);
    int fd = open("f", O_RDONLY);
    IS(fd >= 0);
    FAILS(write(fd, "x", 1), EBADF);
    IS(close(fd) == 0 && close(open("f", O_WRONLY | O_TRUNC)) == 0 && holds("f", ""));
}

static void unnamed(void)
{
    int fd = open(".", O_TMPFILE | O_RDWR, 0600);
    IS(fd >= 0 && write(fd, "x", 1) == 1);
}

static void append(void)
{
    int a = make("f", "start ");
    int b = open("f", O_WRONLY | O_APPEND);
    IS(a >= 0 && b >= 0 && write(b, "one ", 4) == 4 && lseek(b, 0, SEEK_SET) == 0);
    IS(write(b, "two", 3) == 3 && holds("f", "start one two"));
}

/* Writers of one kernel never overwrite one another. */
static void append_together(void)
{
    IS(close(make("f", "")) == 0);
    for (int i = 0; i < 4; i++) {
        if (fork() == 0) {
            int fd = open("f", O_WRONLY | O_APPEND);
            for (int k = 0; k < 50; k++)
                if (write(fd, "12345678", 8) != 8)
                    _exit(1);
            _exit(0);
        }
    }
    int status = 0;
    while (wait(&status) > 0)
        IS(status == 0);
    struct stat st;
    IS(stat("f", &st) == 0 && st.st_size == 4 * 50 * 8);
}

static void unlink_while_open(void)
{
    struct stat st;
    char data[8];
    int fd = make("f", "text");
    IS(unlink("f") == 0);
    FAILS(open("f", O_RDONLY), ENOENT);
    IS(fstat(fd, &st) == 0 && st.st_size == 4 && pwrite(fd, "more", 4, 4) == 4);
    IS(pread(fd, data, 8, 0) == 8 && memcmp(data, "textmore", 8) == 0);
    IS(ftruncate(fd, 2) == 0 && fchmod(fd, 0600) == 0 && fstat(fd, &st) == 0 && st.st_size == 2);
    IS(st.st_mode == (S_IFREG | 0600));
}

static void unlinked_has_no_links(void)
{
    struct stat st;
    int fd = make("f", "text");
    IS(unlink("f") == 0 && fstat(fd, &st) == 0 && st.st_nlink == 0);
}

static void rename_rules(void)
{
    IS(close(make("a", "a")) == 0 && close(make("b", "b")) == 0);
    ino_t i = inode("a");
    int fd = open("b", O_RDONLY);
    char c;
    IS(rename("a", "b") == 0 && inode("b") == i && holds("b", "a"));
    IS(read(fd, &c, 1) == 1 && c == 'b');
    FAILS(rename("a", "c"), ENOENT);
    IS(mkdir("d", 0755) == 0 && mkdir("e", 0755) == 0 && close(make("e/x", "")) == 0);
    FAILS(rename("b", "d"), EISDIR);
    FAILS(rename("d", "b"), ENOTDIR);
    FAILS(rename("d", "e"), ENOTEMPTY);
    FAILS(rename("e", "e/sub"), EINVAL);
    IS(rename("e", "d") == 0 && holds("d/x", ""));
    FAILS(renameat2(AT_FDCWD, "d", AT_FDCWD, "b", RENAME_NOREPLACE), EEXIST);
    IS(renameat2(AT_FDCWD, "d", AT_FDCWD, "b", RENAME_EXCHANGE) == 0 && holds("b/x", ""));
    IS(rename("b/x", "b/x") == 0 && holds("d", "a"));
}

static void links(void)
{
    struct stat st;
    IS(close(make("a", "text")) == 0 && link("a", "b") == 0 && inode("a") == inode("b"));
    IS(stat("b", &st) == 0 && st.st_nlink == 2);
    FAILS(link("a", "b"), EEXIST);
    IS(mkdir("d", 0755) == 0);
    FAILS(link("d", "e"), EPERM);
    IS(unlink("a") == 0 && holds("b", "text") && rename("b", "a") == 0);
    IS(link("a", "b") == 0 && rename("a", "b") == 0 && inode("a") == inode("b"));
}

static void link_counts_are_fresh(void)
{
    struct stat st;
    IS(close(make("a", "text")) == 0 && stat("a", &st) == 0 && st.st_nlink == 1);
    IS(link("a", "b") == 0 && stat("a", &st) == 0 && st.st_nlink == 2);
    IS(unlink("b") == 0 && stat("a", &st) == 0 && st.st_nlink == 1);
    IS(mkdir("d", 0755) == 0 && mkdir("d/e", 0755) == 0);
}

static void link_to_symlink(void)
{
    IS(symlink("nowhere", "s") == 0 && link("s", "t") == 0 && inode("s") == inode("t"));
}

static void symlinks(void)
{
    char data[PATH_MAX];
    struct stat st;
    IS(symlink("b", "a") == 0 && symlink("a", "b") == 0);
    FAILS(open("a", O_RDONLY), ELOOP);
    FAILS(stat("a/x", &st), ELOOP);
    IS(lstat("a", &st) == 0 && S_ISLNK(st.st_mode) && st.st_size == 1);
    IS(readlink("a", data, sizeof(data)) == 1 && data[0] == 'b');
    FAILS(symlink("x", "a"), EEXIST);
    memset(data, 'x', sizeof(data));
    data[4000] = '\0';
    IS(symlink(data, "long") == 0 && readlink("long", data, sizeof(data)) == 4000);
    FAILS(open("a", O_RDONLY | O_NOFOLLOW), ELOOP);
}

static void long_names(void)
{
    char name[300];
    memset(name, 'n', sizeof(name));
    name[255] = '\0';
    IS(close(make(name, "long")) == 0 && holds(name, "long") && unlink(name) == 0);
    name[255] = 'n';
    name[256] = '\0';
    FAILS(open(name, O_CREAT | O_WRONLY, 0600), ENAMETOOLONG);
    FAILS(mkdir(name, 0755), ENAMETOOLONG);
    IS(close(make("\xff\x01 \n", "bytes")) == 0 && holds("\xff\x01 \n", "bytes"));
}

static void deep(void)
{
    int at = open(".", O_PATH | O_DIRECTORY);
    for (int i = 0; i < 60; i++) {
        IS(mkdirat(at, "directory-with-a-long-name-to-pass-the-limit-of-one-path", 0755) == 0);
        int next = openat(at, "directory-with-a-long-name-to-pass-the-limit-of-one-path",
                          O_PATH | O_DIRECTORY);
        IS(next >= 0 && close(at) == 0);
        at = next;
    }
    IS(close(openat(at, "f", O_CREAT | O_WRONLY, 0600)) == 0);
}

static void directories(void)
{
    IS(mkdir("d", 0700) == 0 && close(make("d/f", "")) == 0);
    FAILS(rmdir("d"), ENOTEMPTY);
    FAILS(mkdir("d", 0700), EEXIST);
    FAILS(unlink("d"), EISDIR);
    FAILS(rmdir("d/f"), ENOTDIR);
    IS(unlink("d/f") == 0 && rmdir("d") == 0);
    FAILS(rmdir("d"), ENOENT);
}

static void removed_directory(void)
{
    IS(mkdir("d", 0700) == 0);
    int fd = open("d", O_RDONLY | O_DIRECTORY);
    IS(fd >= 0 && rmdir("d") == 0);
    FAILS(openat(fd, "x", O_CREAT | O_WRONLY, 0600), ENOENT);
    struct stat st;
    IS(fstat(fd, &st) == 0);
}

static void truncation(void)
{
    struct stat st;
    char data[8];
    int fd = make("f", "12345678");
    IS(truncate("f", 3) == 0 && holds("f", "123") && ftruncate(fd, 6) == 0);
    IS(pread(fd, data, 8, 0) == 6 && memcmp(data, "123\0\0\0", 6) == 0);
    IS(ftruncate(fd, INT64_C(1) << 32) == 0 && fstat(fd, &st) == 0);
    IS(st.st_size == INT64_C(1) << 32 && st.st_blocks < 64);
    FAILS(ftruncate(fd, -1), EINVAL);
    FAILS(truncate(".", 0), EISDIR);
}

static void sparse(void)
{
    char data[4];
    int fd = open("f", O_RDWR | O_CREAT, 0600);
    off_t far = 1 << 20;
    IS(fd >= 0 && pwrite(fd, "end", 3, far) == 3 && pread(fd, data, 4, 4096) == 4);
    IS(memcmp(data, "\0\0\0\0", 4) == 0 && fsync(fd) == 0);
    IS(lseek(fd, 0, SEEK_DATA) == far && lseek(fd, 0, SEEK_HOLE) == 0);
    FAILS(lseek(fd, far + 3, SEEK_DATA), ENXIO);
}

static void allocation(void)
{
    struct stat st;
    char data[4];
    int fd = make("f", "");
    IS(fallocate(fd, 0, 0, 65536) == 0 && fstat(fd, &st) == 0 && st.st_size == 65536);
    IS(fallocate(fd, FALLOC_FL_KEEP_SIZE, 65536, 4096) == 0 && fstat(fd, &st) == 0);
    IS(st.st_size == 65536 && pwrite(fd, "text", 4, 4096) == 4 && fsync(fd) == 0);
    IS(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096) == 0);
    IS(pread(fd, data, 4, 4096) == 4 && memcmp(data, "\0\0\0\0", 4) == 0);
}

static void mapped_shared(void)
{
    int fd = make("f", "");
    IS(ftruncate(fd, 8192) == 0);
    char *m = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    IS(m != MAP_FAILED);
    memcpy(m + 4096, "mapped", 6);
    IS(msync(m, 8192, MS_SYNC) == 0);
    char data[6];
    int other = open("f", O_RDONLY);
    IS(pread(other, data, 6, 4096) == 6 && memcmp(data, "mapped", 6) == 0);
    IS(pwrite(fd, "written", 7, 0) == 7 && memcmp(m, "written", 7) == 0);
    IS(unlink("f") == 0);
    memcpy(m, "unlinked", 8);
    IS(msync(m, 8192, MS_SYNC) == 0 && munmap(m, 8192) == 0 && pread(fd, data, 6, 0) == 6);
    IS(memcmp(data, "unlink", 6) == 0);
}

static void mapped_private_and_executed(void)
{
    int fd = make("f", "text");
    char *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    IS(m != MAP_FAILED && memcmp(m, "text\0", 5) == 0);
    m[0] = 'n';
    IS(holds("f", "text"));
    IS(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) != MAP_FAILED);
}

static void times(void)
{
    struct stat st;
    struct timespec t[2] = {{981173106, 123456789}, {-5, 7}};
    IS(close(make("f", "text")) == 0 && utimensat(AT_FDCWD, "f", t, 0) == 0);
    IS(stat("f", &st) == 0 && st.st_atim.tv_sec == 981173106 && st.st_mtim.tv_sec == -5);
    IS(st.st_atim.tv_nsec == 123456789 && st.st_mtim.tv_nsec == 7);
    t[0].tv_nsec = UTIME_OMIT;
    t[1].tv_nsec = UTIME_NOW;
    time_t now = time(NULL);
    IS(utimensat(AT_FDCWD, "f", t, 0) == 0 && stat("f", &st) == 0);
    IS(st.st_atim.tv_sec == 981173106 && st.st_mtim.tv_sec >= now - 2 &&
       st.st_mtim.tv_sec < now + 3);
    IS(symlink("f", "s") == 0 && utimensat(AT_FDCWD, "s", t, AT_SYMLINK_NOFOLLOW) == 0);
}

static void times_follow_writes(void)
{
    struct stat before;
    struct stat st;
    struct timespec old[2] = {{1, 0}, {1, 0}};
    int fd = make("f", "text");
    IS(futimens(fd, old) == 0 && stat("f", &before) == 0 && before.st_mtim.tv_sec == 1);
    IS(write(fd, "more", 4) == 4 && stat("f", &st) == 0 && st.st_mtim.tv_sec > 1);
    IS(st.st_size == 8 && stat(".", &before) == 0);
    IS(futimens(fd, old) == 0 && truncate("f", 1) == 0 && stat("f", &st) == 0 &&
       st.st_mtim.tv_sec > 1);
}

static void modes(void)
{
    struct stat st;
    (void)umask(027);
    int fd = open("f", O_CREAT | O_RDWR, 0666);
    IS(fstat(fd, &st) == 0 && st.st_mode == (S_IFREG | 0640));
    IS(mkdir("d", 0777) == 0 && stat("d", &st) == 0 && st.st_mode == (S_IFDIR | 0750));
    (void)umask(0);
    IS(fchmod(fd, 06755) == 0 && stat("f", &st) == 0 && st.st_mode == (S_IFREG | 06755));
    IS(chown("f", 12, 34) == 0 && stat("f", &st) == 0 && st.st_uid == 12 && st.st_gid == 34);
    IS(st.st_mode == (S_IFREG | 0755)); /* a change of owner clears set-id bits */
    IS(chmod("d", 02775) == 0 && chown("d", 0, 55) == 0 && mkdir("d/e", 0755) == 0);
    IS(stat("d/e", &st) == 0 && st.st_gid == 55 && (st.st_mode & S_ISGID) != 0);
    IS(close(make("d/f", "")) == 0 && stat("d/f", &st) == 0 && st.st_gid == 55);
    IS(symlink("f", "s") == 0 && lchown("s", 7, 8) == 0 && lstat("s", &st) == 0);
    IS(st.st_uid == 7 && st.st_gid == 8);
}

/* In a child that is no root. */
static void as_user(void)
{
    IS(close(make("f", "text")) == 0 && chmod("f", 0600) == 0);
    IS(mkdir("d", 0755) == 0 && mkdir("t", 0755) == 0 && chmod("t", 01777) == 0);
    IS(close(make("t/roots", "")) == 0 && close(make("suid", "text")) == 0);
    IS(chmod("suid", 0) == 0 && chmod("suid", 04777) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct stat st;
        int r = 0;
        if (setgid(1000) != 0 || setuid(1000) != 0)
            _exit(99);
        r = r == 0 && (open("f", O_RDONLY) >= 0 || errno != EACCES) ? 1 : r;
        r = r == 0 && (mkdir("d/x", 0755) == 0 || errno != EACCES) ? 2 : r;
        r = r == 0 && (unlink("t/roots") == 0 || errno != EPERM) ? 3 : r;
        r = r == 0 && (chmod("f", 0777) == 0 || errno != EPERM) ? 4 : r;
        r = r == 0 && (chown("f", 1000, 1000) == 0 || errno != EPERM) ? 5 : r;
        int fd = open("t/mine", O_CREAT | O_RDWR, 0600);
        r = r == 0 && (fd < 0 || fstat(fd, &st) != 0 || st.st_uid != 1000) ? 6 : r;
        r = r == 0 && unlink("t/mine") != 0 ? 7 : r;
        fd = open("suid", O_WRONLY);
        r = r == 0 && (fd < 0 || write(fd, "x", 1) != 1 || stat("suid", &st) != 0) ? 8 : r;
        r = r == 0 && (st.st_mode & S_ISUID) != 0 ? 9 : r;
        _exit(r);
    }
    int status;
    IS(waitpid(pid, &status, 0) == pid);
    errno = 0;
    IS(status == 0 || (errno = WEXITSTATUS(status), false));
}

static int lock_of_another(const char *name, short type)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
        int fd = open(name, O_RDWR);
        _exit(fcntl(fd, F_SETLK, &l) == 0 ? 0 : errno);
    }
    int status;
    return waitpid(pid, &status, 0) == pid ? WEXITSTATUS(status) : -1;
}

static void locks(void)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 5};
    int fd = make("f", "text");
    IS(fcntl(fd, F_SETLK, &l) == 0 && lock_of_another("f", F_RDLCK) == EAGAIN);
    l.l_type = F_RDLCK;
    IS(fcntl(fd, F_SETLK, &l) == 0 && lock_of_another("f", F_RDLCK) == 0);
    IS(lock_of_another("f", F_WRLCK) == EAGAIN);
    l.l_type = F_UNLCK;
    IS(fcntl(fd, F_SETLK, &l) == 0 && lock_of_another("f", F_WRLCK) == 0);
    int other = open("f", O_RDWR);
    IS(flock(fd, LOCK_EX) == 0);
    FAILS(flock(other, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    IS(flock(fd, LOCK_UN) == 0 && flock(other, LOCK_EX | LOCK_NB) == 0);
    struct flock o = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    IS(fcntl(fd, F_OFD_SETLK, &o) == 0);
    FAILS(fcntl(other, F_OFD_SETLK, &o), EAGAIN);
}

static void reading_a_changing_directory(void)
{
    char name[32];
    int seen = 0;
    IS(mkdir("d", 0755) == 0 && chdir("d") == 0);
    for (int i = 0; i < 300; i++) {
        (void)snprintf(name, sizeof(name), "stays-%d", i);
        IS(close(make(name, "")) == 0);
        (void)snprintf(name, sizeof(name), "goes-%d", i);
        IS(close(make(name, "")) == 0);
    }
    DIR *d = opendir(".");
    IS(d != NULL);
    struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        seen += strncmp(e->d_name, "stays-", 6) == 0;
        if (strncmp(e->d_name, "goes-", 5) == 0)
            IS(unlink(e->d_name) == 0);
    }
    IS(chdir("..") == 0 && seen == 300);
    rewinddir(d);
    seen = 0;
    while (readdir(d) != NULL)
        seen++;
    IS(seen == 302);
    long where = 0;
    rewinddir(d);
    for (int i = 0; i < 50; i++) {
        IS((e = readdir(d)) != NULL);
        where = i == 48 ? telldir(d) : where;
    }
    (void)snprintf(name, sizeof(name), "%.31s", e->d_name);
    seekdir(d, where);
    IS((e = readdir(d)) != NULL && strcmp(e->d_name, name) == 0 && closedir(d) == 0);
}

static void special_files(void)
{
    struct stat st;
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "sock"};
    char c;
    IS(mkfifo("p", 0644) == 0 && stat("p", &st) == 0 && S_ISFIFO(st.st_mode));
    int r = open("p", O_RDONLY | O_NONBLOCK);
    int w = open("p", O_WRONLY);
    IS(r >= 0 && w >= 0 && write(w, "x", 1) == 1 && read(r, &c, 1) == 1);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    IS(bind(s, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(s, 1) == 0);
    int k = socket(AF_UNIX, SOCK_STREAM, 0);
    IS(connect(k, (struct sockaddr *)&a, sizeof(a)) == 0);
}

static void device_nodes(void)
{
    IS(mknod("n", S_IFCHR | 0666, 0x103) == 0);
}

static void user_attributes(void)
{
    char data[64];
    IS(close(make("f", "text")) == 0 && setxattr("f", "user.a", "value", 5, XATTR_CREATE) == 0);
    FAILS(setxattr("f", "user.a", "x", 1, XATTR_CREATE), EEXIST);
    FAILS(setxattr("f", "user.b", "x", 1, XATTR_REPLACE), ENODATA);
    IS(getxattr("f", "user.a", NULL, 0) == 5 && getxattr("f", "user.a", data, 64) == 5);
    FAILS(getxattr("f", "user.a", data, 2), ERANGE);
    IS(listxattr("f", data, 64) >= 7 && removexattr("f", "user.a") == 0);
    FAILS(getxattr("f", "user.a", data, 64), ENODATA);
    IS(setxattr("f", "user.empty", "", 0, 0) == 0 && getxattr("f", "user.empty", data, 64) == 0);
}

/* user:1000:rw- beside the owner, as setfacl writes it. */
static void acls(void)
{
    static const unsigned char acl[] = {2,   0,   0,   0,   1,   0,   6,  0,   255, 255, 255,
                                        255, 2,   0,   6,   0,   232, 3,  0,   0,   4,   0,
                                        4,   0,   255, 255, 255, 255, 16, 0,   6,   0,   255,
                                        255, 255, 255, 32,  0,   4,   0,  255, 255, 255, 255};
    IS(close(make("f", "text")) == 0);
    IS(setxattr("f", "system.posix_acl_access", acl, sizeof(acl), 0) == 0);
}

static void file_capabilities(void)
{
    static const unsigned char cap[] = {1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    IS(close(make("f", "text")) == 0);
    IS(setxattr("f", "security.capability", cap, sizeof(cap), 0) == 0);
}

static void direct_io(void)
{
    void *block = aligned_alloc(4096, 8192);
    memset(block, 'd', 8192);
    int fd = open("f", O_CREAT | O_RDWR | O_DIRECT, 0600);
    IS(fd >= 0 && write(fd, block, 8192) == 8192 && pread(fd, block, 4096, 4096) == 4096);
}

static void copies(void)
{
    int from = make("a", "some text");
    int to = make("b", "");
    off_t at = 0;
    IS(copy_file_range(from, &at, to, NULL, 9, 0) == 9 && holds("b", "some text"));
}

static void sizes_of_the_file_system(void)
{
    struct statvfs st;
    IS(statvfs(".", &st) == 0 && st.f_blocks > 0 && st.f_namemax >= 255 &&
       st.f_bavail <= st.f_blocks);
}

/* A small fsx: reads, writes, truncations, and mapped writes at random, compared with memory. */
static void random_operations(void)
{
    enum { SIZE = 1 << 18, STEPS = 1500 };
    static char good[SIZE];
    static char data[SIZE];
    int fd = make("f", "");
    size_t len = 0;
    srand(4711);
    for (int i = 0; i < STEPS; i++) {
        size_t at = (size_t)rand() % SIZE;
        size_t n = (size_t)rand() % (SIZE / 8);
        n = at + n > SIZE ? SIZE - at : n;
        switch (rand() % 6) {
        case 0:
        case 1:
            memset(data, 'a' + i % 26, n);
            IS(pwrite(fd, data, n, (off_t)at) == (ssize_t)n);
            memcpy(good + at, data, n);
            len = n > 0 && at + n > len ? at + n : len;
            break;
        case 2:
            IS(ftruncate(fd, (off_t)at) == 0);
            if (at < len)
                memset(good + at, 0, len - at);
            len = at;
            break;
        case 3: {
            if (at + n > len || n == 0)
                break;
            char *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            IS(m != MAP_FAILED);
            memset(m + at, 'A' + i % 26, n);
            memset(good + at, 'A' + i % 26, n);
            IS(munmap(m, len) == 0);
            break;
        }
        case 4:
            IS(close(fd) == 0 && (fd = open("f", O_RDWR)) >= 0);
            break;
        default: {
            ssize_t want = at >= len ? 0 : (ssize_t)(at + n > len ? len - at : n);
            IS(pread(fd, data, n, (off_t)at) == want && memcmp(data, good + at, (size_t)want) == 0);
        }
        }
    }
    struct stat st;
    IS(fstat(fd, &st) == 0 && (size_t)st.st_size == len);
}

/* A small fsstress: four processes make, rename, link and remove the same few names. */
static void many_at_once(void)
{
    IS(mkdir("d", 0755) == 0 && chdir("d") == 0);
    for (int p = 0; p < 4; p++) {
        if (fork() == 0) {
            char a[16];
            char b[16];
            srand((unsigned)p);
            for (int i = 0; i < 150; i++) {
                (void)snprintf(a, sizeof(a), "%d", rand() % 8);
                (void)snprintf(b, sizeof(b), "%d", rand() % 8);
                int r = 0;
                switch (rand() % 6) {
                case 0:
                    r = close(open(a, O_CREAT | O_WRONLY, 0600));
                    break;
                case 1:
                    r = rename(a, b);
                    break;
                case 2:
                    r = link(a, b);
                    break;
                case 3:
                    r = unlink(a);
                    break;
                case 4:
                    r = mkdir(a, 0700);
                    break;
                default:
                    r = rmdir(a);
                }
                if (r < 0 && errno != ENOENT && errno != EEXIST && errno != EISDIR &&
                    errno != EPERM && errno != ENOTDIR && errno != ENOTEMPTY && errno != EBADF) {
                    perror("many at once");
                    _exit(errno);
                }
            }
            _exit(0);
        }
    }
    int status = 0;
    while (wait(&status) > 0) {
        errno = WEXITSTATUS(status);
        IS(status == 0);
    }
    char name[16];
    for (int i = 0; i < 8; i++) {
        (void)snprintf(name, sizeof(name), "%d", i);
        IS(unlink(name) == 0 || errno == ENOENT || rmdir(name) == 0);
    }
    IS(chdir("..") == 0 && rmdir("d") == 0);
}

#define CHECK(f)                                                                                   \
    {                                                                                              \
#f, f                                                                                      \
    }
static const struct {
    const char *name;
    void (*run)(void);
} checks[] = {
    CHECK(open_flags),
    CHECK(unnamed),
    CHECK(append),
    CHECK(append_together),
    CHECK(unlink_while_open),
    CHECK(unlinked_has_no_links),
    CHECK(rename_rules),
    CHECK(links),
    CHECK(link_counts_are_fresh),
    CHECK(link_to_symlink),
    CHECK(symlinks),
    CHECK(long_names),
    CHECK(deep),
    CHECK(directories),
    CHECK(removed_directory),
    CHECK(truncation),
    CHECK(sparse),
    CHECK(allocation),
    CHECK(mapped_shared),
    CHECK(mapped_private_and_executed),
    CHECK(times),
    CHECK(times_follow_writes),
    CHECK(modes),
    CHECK(as_user),
    CHECK(locks),
    CHECK(reading_a_changing_directory),
    CHECK(special_files),
    CHECK(device_nodes),
    CHECK(user_attributes),
    CHECK(acls),
    CHECK(file_capabilities),
    CHECK(direct_io),
    CHECK(copies),
    CHECK(sizes_of_the_file_system),
    CHECK(random_operations),
    CHECK(many_at_once),
};

int main(int argc, char **argv)
{
    if (argc != 2 || chdir(argv[1]) < 0) {
        perror("posix DIR");
        return 2;
    }
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        (void)umask(0);
        /* a process and a directory of its own each */
        (void)fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            why[0] = '\0';
            if (mkdir(checks[i].name, 0755) < 0 || chdir(checks[i].name) < 0)
                (void)snprintf(why, sizeof(why), "make a directory: %s", strerror(errno));
            else
                checks[i].run();
            if (why[0] == '\0')
                (void)printf("ok %s\n", checks[i].name);
            else
                (void)printf("differs %s: %s\n", checks[i].name, why);
            (void)fflush(stdout);
            _exit(0);
        }
        int status;
        if (waitpid(pid, &status, 0) != pid || status != 0)
            (void)printf("differs %s: status %d\n", checks[i].name, status);
    }
    return 0;
}
