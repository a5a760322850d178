#include "agent/huge_text.h"

#include <elf.h>
#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/fs.h"

#define SWITCH "/sys/kernel/mm/transparent_hugepage/enabled"
#define HUGE ((uintptr_t)2 << 20)

/* Where the segment with the code begins and ends, if the huge page that it begins with holds all
 * of it and nothing else. */
static bool find_code(uintptr_t *begin, uintptr_t *end)
{
    const ElfW(Phdr) *ph = (const ElfW(Phdr) *)getauxval(AT_PHDR);
    size_t n = getauxval(AT_PHNUM);

    *begin = *end = 0;
    for (size_t i = 0; ph != NULL && i < n; i++) {
        if (ph[i].p_type == PT_LOAD && (ph[i].p_flags & PF_X) != 0) {
            *begin = ph[i].p_vaddr;
            *end = ph[i].p_vaddr + ph[i].p_memsz;
        }
    }
    if (*begin == 0 || *begin % HUGE != 0 || *end > *begin + HUGE)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (ph[i].p_type == PT_LOAD && ph[i].p_vaddr > *begin && ph[i].p_vaddr < *begin + HUGE)
            return false;
    }
    return true;
}

static void move_code(uintptr_t begin, uintptr_t end)
{
    char *at = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return;
    size_t before = -(uintptr_t)at % HUGE;
    char *page = at + before;
    // NOLINTBEGIN(performance-no-int-to-ptr): addresses are what program headers hold
    bool ready = madvise(page, HUGE, MADV_HUGEPAGE) == 0;
    if (ready)
        (void)memcpy(page, (const void *)begin, end - begin);
    ready = ready && mprotect(page, HUGE, PROT_READ | PROT_EXEC) == 0;
    /* from here on the next instruction comes out of the copy */
    if (ready)
        ready =
            mremap(page, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)begin) != MAP_FAILED;
    // NOLINTEND(performance-no-int-to-ptr)
    (void)munmap(at, before);
    if (!ready)
        (void)munmap(page, HUGE);
    (void)munmap(page + HUGE, HUGE - before);
}

void huge_text(void)
{
    uintptr_t begin;
    uintptr_t end;
    auto_free char *now = fs_read(SWITCH, 256, NULL, NULL);

    if (now == NULL || !find_code(&begin, &end))
        return;
    /* kernels switch them off in guests as small as most are; containers find it as it was */
    bool off = strstr(now, "[never]") != NULL;
    if (off)
        (void)fs_write_str(SWITCH, "madvise", NULL);
    move_code(begin, end);
    if (off)
        (void)fs_write_str(SWITCH, "never", NULL);
}
