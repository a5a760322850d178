/*
 * aspis-pages.so - preloaded into QEMU, so that a clone gives the host back what its guest frees,
 * and takes no more than it needs.
 *
 * QEMU gives a page of file memory back in two steps: it punches a hole into the file, and drops
 * the page from its own mapping. A clone's file is its template's, sealed, and every other clone's
 * memory too: the first step fails there, and QEMU would leave out the second, which alone is what
 * a private mapping needs. So the first step succeeds without doing anything where the file is
 * sealed. The page then reads as the template's again, which the guest, having freed it, does not
 * look at.
 *
 * QEMU asks for huge pages for all of a machine's memory blocks, the firmware's tables too: a 128
 * KiB table in a block of 2 MiB would get all of it. Only large blocks get them.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((visibility("default"))) int fallocate64(int fd, int mode, off64_t offset,
                                                       off64_t len);

__attribute__((visibility("default"))) int madvise(void *addr, size_t len, int advice);

#define LARGE (32UL << 20)

int madvise(void *addr, size_t len, int advice)
{
    if (advice == MADV_HUGEPAGE && len < LARGE)
        return 0;
    return (int)syscall(SYS_madvise, addr, len, advice);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t len)
{
    if ((mode & FALLOC_FL_PUNCH_HOLE) != 0) {
        int saved = errno;
        int seals = fcntl(fd, F_GET_SEALS); /* -1: no memory file */
        errno = saved;
        if (seals >= 0 && (seals & F_SEAL_WRITE) != 0)
            return 0;
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}
