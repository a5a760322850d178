#include "cri/huge_pages.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"

#define IN_A_VM "2MB"
#define MAX_SIZES 16
/* Nobody has more, and the sums of all containers' stay numbers. */
#define MOST (UINT64_C(1) << 50)

typedef Runtime__V1__LinuxContainerResources Resources;
typedef Runtime__V1__HugepageLimit Limit;

/* Bytes of "2MB"; 0: that is no size. */
static uint64_t size_of(const char *text)
{
    static const char units[] = "KMG";
    size_t digits = strspn(text, "0123456789");
    const char *unit = text[digits] != '\0' ? strchr(units, text[digits]) : NULL;
    char number[8];
    uint64_t n = 0;
    if (digits == 0 || digits >= sizeof(number) || unit == NULL ||
        strcmp(text + digits + 1, "B") != 0)
        return 0;
    memcpy(number, text, digits);
    number[digits] = '\0';
    return str_to_u64(number, &n) == 0 ? n << (10 * (unit - units + 1)) : 0;
}

int huge_pages_check(const Resources *r, struct err *err)
{
    if (r->n_hugepage_limits > MAX_SIZES)
        return err_set(err, ERR_INVALID, "hugepage_limits: more than %d sizes", MAX_SIZES);
    for (size_t i = 0; i < r->n_hugepage_limits; i++) {
        const Limit *l = r->hugepage_limits[i];
        uint64_t page = size_of(l->page_size);
        if (page == 0)
            return err_set(err, ERR_INVALID, "hugepage_limits: \"%.16s\" is no size like 2MB",
                           l->page_size);
        if (l->limit % page != 0 || l->limit > MOST)
            return err_set(err, ERR_INVALID,
                           "hugepage_limits: %" PRIu64 " bytes are no number of pages of %.16s",
                           (uint64_t)l->limit, l->page_size);
    }
    return 0;
}

/* Whether the host bounds pages of that size. */
static bool host_has(const char *page_size)
{
    auto_free char *pages =
        fs_format("/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB", size_of(page_size) / KiB(1));
    auto_free char *v2 = fs_read("/sys/fs/cgroup/cgroup.controllers", KiB(4), NULL, NULL);
    return fs_exists(pages) && (fs_exists("/sys/fs/cgroup/hugetlb/cgroup.procs") ||
                                (v2 != NULL && strstr(v2, "hugetlb") != NULL));
}

static bool has(const char *page_size, enum backend backend)
{
    return backend == BACKEND_VM ? strcmp(page_size, IN_A_VM) == 0 : host_has(page_size);
}

int huge_pages_check_backend(const Resources *r, enum backend backend, struct err *err)
{
    for (size_t i = 0; i < r->n_hugepage_limits; i++) {
        const Limit *l = r->hugepage_limits[i];
        if (l->limit == 0 || has(l->page_size, backend))
            continue;
        if (backend == BACKEND_VM)
            return err_set(err, ERR_UNIMPLEMENTED,
                           "huge pages of %.16s are asked for; those of a VM are of " IN_A_VM,
                           l->page_size);
        return err_set(err, ERR_PRECONDITION,
                       "huge pages of %.16s are asked for; the host has none, or no hugetlb "
                       "control groups to bound them",
                       l->page_size);
    }
    return 0;
}

uint64_t huge_pages_bytes(const Resources *r)
{
    for (size_t i = 0; r != NULL && i < r->n_hugepage_limits; i++) {
        if (strcmp(r->hugepage_limits[i]->page_size, IN_A_VM) == 0)
            return r->hugepage_limits[i]->limit;
    }
    return 0;
}

void huge_pages_merge(Resources *to, const Resources *by)
{
    for (size_t i = 0; i < by->n_hugepage_limits; i++) {
        const Limit *l = by->hugepage_limits[i];
        size_t k = 0;
        while (k < to->n_hugepage_limits &&
               strcmp(to->hugepage_limits[k]->page_size, l->page_size) != 0)
            k++;
        if (k == to->n_hugepage_limits) {
            Limit *add = xcalloc(1, sizeof(*add));
            runtime__v1__hugepage_limit__init(add);
            add->page_size = xstrdup(l->page_size);
            to->hugepage_limits = xrealloc(to->hugepage_limits, k + 1, sizeof(void *));
            to->hugepage_limits[to->n_hugepage_limits++] = add;
        }
        to->hugepage_limits[k]->limit = l->limit;
    }
}

json_t *huge_pages_spec(const Resources *r, enum backend backend)
{
    json_t *list = NULL;
    for (size_t i = 0; r != NULL && i < r->n_hugepage_limits; i++) {
        const Limit *l = r->hugepage_limits[i];
        if (!has(l->page_size, backend))
            continue;
        if (list == NULL)
            list = json_array();
        (void)json_array_append_new(
            list, json_pack("{s:s, s:I}", "pageSize", l->page_size, "limit", (json_int_t)l->limit));
    }
    return list;
}

void huge_pages_files(const Resources *r, enum backend backend, struct strv *keys,
                      struct strv *values)
{
    for (size_t i = 0; i < r->n_hugepage_limits; i++) {
        const Limit *l = r->hugepage_limits[i];
        if (!has(l->page_size, backend))
            continue;
        strv_addf(keys, "hugetlb.%s.max", l->page_size);
        strv_addf(values, "%" PRIu64, (uint64_t)l->limit);
    }
}
