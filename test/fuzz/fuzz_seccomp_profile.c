/* Seccomp profiles: what is read compiles or says why not, and a filter has a size the kernel
 * takes.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cri/seccomp_compile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_seccomp_profile struct seccomp_profile p = {0};
    struct seccomp_facts facts = {.caps = UINT64_C(1) << 21, .kernel = 6, .patch = 1};
    auto_err struct err err = ERR_INIT;
    auto_free struct sock_filter *program = NULL;
    size_t n = 0;

    if (seccomp_profile_parse(data, size, &facts, &p, &err) < 0) {
        if (err.code == ERR_OK || p.rules != NULL)
            abort();
        return 0;
    }
    if (p.n_rules > LIMIT_SECCOMP_RULES)
        abort();
    /* compiling many rules takes longer than a fuzzer has patience for */
    if (p.n_rules > 64)
        return 0;
    if (seccomp_compile(&p, &program, &n, &err) < 0)
        return err.code == ERR_OK ? (abort(), 0) : 0;
    if (n == 0 || n > BPF_MAXINSNS)
        abort();
    return 0;
}
