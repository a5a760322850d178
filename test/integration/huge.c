/* Huge pages of 2 MiB from inside a container: huge anon PAGES, huge file PATH PAGES. Says how many
 * it could write to; a page that the control group refuses ends it with SIGBUS. Each page's first
 * byte is read back. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE ((size_t)2 << 20)

int main(int argc, char **argv)
{
    int file = argc == 4 && strcmp(argv[1], "file") == 0;
    if (!file && (argc != 3 || strcmp(argv[1], "anon") != 0)) {
        (void)fputs("usage\n", stderr);
        return 2;
    }
    size_t n = strtoul(argv[argc - 1], NULL, 10);
    int fd = file ? open(argv[2], O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file && (fd < 0 || ftruncate(fd, (off_t)(n * PAGE)) < 0)) {
        perror(argv[2]);
        return 1;
    }
    unsigned char *p = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE,
                            file ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, fd, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (size_t i = 0; i < n; i++)
        p[i * PAGE] = (unsigned char)(i + 1);
    for (size_t i = 0; i < n; i++) {
        if (p[i * PAGE] != (unsigned char)(i + 1))
            return 3;
    }
    (void)printf("%zu pages\n", n);
    return 0;
}
