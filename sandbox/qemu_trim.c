/*
 * aspis-trim.so - a plugin of QEMU's emulation (TCG): what a VM has once translated is given back
 * when its pod does nothing.
 *
 * Starting a container translates some 40 MB of code, with 5 MB of tables about it, nearly all of
 * which an idle pod never runs again. QEMU keeps it until its buffer is full, and the memory also
 * after that. The plugin looks at how the process's vCPUs go to sleep: when it has used next to no
 * processor time for a while, the translations are thrown away (which is what resetting a plugin
 * does, in QEMU's own safe way), and their pages and the heap's free ones go back to the host.
 *
 * The price is that code which runs again is translated again. So a VM that is not a pod's yet is
 * left alone, so is one in which commands are executed every few seconds (probes), and no VM pays
 * for it again and again: the time until the next trim doubles with each.
 *
 * Arguments: seconds=N, how long the VM has to be idle; buffer=N, QEMU's tb-size in MiB; probe=on:
 * ends the process with success, which shows that this QEMU takes the plugin. SIGURG, which nobody
 * else sends or minds, says that the VM is a pod's and being used.
 *
 * Threads: QEMU calls with its big lock held, or while all vCPUs stand still. This file may also be
 * used under the GPL, version 2 or later, as QEMU's plugins are.
 */
#include <malloc.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* QEMU's, docs/devel/tcg-plugins.rst */
typedef uint64_t plugin_id;
void qemu_plugin_register_vcpu_idle_cb(plugin_id id, void (*fn)(plugin_id id, unsigned vcpu));
void qemu_plugin_reset(plugin_id id, void (*fn)(plugin_id id));

#define EXPORT __attribute__((visibility("default")))
EXPORT extern int qemu_plugin_version;
EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv);

/* The interface that QEMU 6 to 8 have. Others refuse it, and are used without the plugin. */
int qemu_plugin_version = 1;

#define SECOND INT64_C(1000000000)
#define IDLE_PERCENT 3          /* of one processor; a guest's own timers take 0.3 */
#define WORTH_IT (8UL << 20)    /* bytes of translations */
#define LONGEST (3600 * SECOND) /* between two times */
#define PROLOGUE (64UL << 10)   /* the buffer begins with code that is made once */

static volatile sig_atomic_t owned; /* used at all */
static volatile sig_atomic_t used;  /* since on_idle() looked */
static int64_t idle_ns;
static size_t buffer_bytes;
static int64_t window_began; /* 0: not yet */
static int64_t window_cpu;
static int64_t last; /* time of the last trim, 0: none */
static int64_t pause_ns;
static bool under_way;

static int64_t clock_ns(clockid_t clock)
{
    struct timespec ts = {0};
    (void)clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * SECOND + ts.tv_nsec;
}

static size_t count_pages(char *at, size_t bytes)
{
    static unsigned char there[4096];
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t n = 0;
    while (bytes > 0) {
        size_t part = bytes < sizeof(there) * page ? bytes : sizeof(there) * page;
        if (mincore(at, part, there) < 0)
            return n;
        for (size_t i = 0; i < (part + page - 1) / page; i++)
            n += there[i] & 1;
        at += part;
        bytes -= part;
    }
    return n * page;
}

static size_t give_back(char *at, size_t bytes)
{
    /* what is translated from now on is little, and not to be had in huge pages */
    (void)madvise(at, bytes, MADV_NOHUGEPAGE);
    return madvise(at, bytes, MADV_DONTNEED) == 0 ? bytes : 0;
}

/* The buffer is the first large anonymous mapping that can be written and executed, in pieces with
 * guard pages between them. Sum of what fn gives for each piece. */
static size_t each_piece(size_t (*fn)(char *at, size_t bytes))
{
    FILE *f = fopen("/proc/self/maps", "re");
    char *line = NULL;
    size_t size = 0;
    size_t sum = 0;
    uintptr_t end_of_all = 0;
    while (f != NULL && getline(&line, &size, f) > 0) {
        unsigned long begin;
        unsigned long end;
        unsigned long inode;
        char mode[5];
        // NOLINTNEXTLINE(cert-err34-c): the kernel writes these
        if (sscanf(line, "%lx-%lx %4s %*s %*s %lu", &begin, &end, mode, &inode) != 4 ||
            strcmp(mode, "rwxp") != 0 || inode != 0)
            continue;
        if (end_of_all == 0 && end - begin > PROLOGUE) {
            end_of_all = begin + buffer_bytes;
            begin += PROLOGUE;
        }
        if (end <= end_of_all)
            sum += fn((char *)begin, end - begin); // NOLINT(performance-no-int-to-ptr)
    }
    free(line);
    if (f != NULL)
        (void)fclose(f);
    return sum;
}

static void on_idle(plugin_id id, unsigned vcpu);

/* All vCPUs stand still and nothing is translated any more. */
static void flushed(plugin_id id)
{
    (void)each_piece(give_back);
    (void)malloc_trim(0);
    last = clock_ns(CLOCK_MONOTONIC);
    window_began = 0;
    under_way = false;
    qemu_plugin_register_vcpu_idle_cb(id, on_idle);
}

/* A vCPU goes to sleep: many times a second in a guest that works. */
static void on_idle(plugin_id id, unsigned vcpu)
{
    (void)vcpu;
    if (!owned || under_way)
        return;
    if (used) {
        used = 0;
        window_began = 0;
    }
    int64_t now = clock_ns(CLOCK_MONOTONIC_COARSE);
    if (window_began != 0 && now - window_began < idle_ns)
        return;
    int64_t cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    bool idle = window_began != 0 && (cpu - window_cpu) * 100 < (now - window_began) * IDLE_PERCENT;
    window_began = now;
    window_cpu = cpu;
    if (!idle || (last != 0 && now - last < pause_ns) || each_piece(count_pages) < WORTH_IT)
        return;
    pause_ns = last == 0 ? 2 * idle_ns : pause_ns < LONGEST / 2 ? 2 * pause_ns : LONGEST;
    under_way = true;
    qemu_plugin_reset(id, flushed);
}

static void on_used(int signal)
{
    (void)signal;
    owned = 1;
    used = 1;
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "probe=on") == 0)
            _exit(0);
        if (strncmp(argv[i], "seconds=", 8) == 0)
            idle_ns = strtol(argv[i] + 8, NULL, 10) * SECOND;
        else if (strncmp(argv[i], "buffer=", 7) == 0)
            buffer_bytes = strtoul(argv[i] + 7, NULL, 10) << 20;
    }
    if (idle_ns <= 0 || buffer_bytes == 0)
        return -1;
    struct sigaction act = {.sa_handler = on_used, .sa_flags = SA_RESTART};
    (void)sigaction(SIGURG, &act, NULL);
    qemu_plugin_register_vcpu_idle_cb(id, on_idle);
    return 0;
}
