#include "cri/seccomp_profile.h"

#include <errno.h>
#include <jansson.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/limits.h"
#include "cri/caps.h"

void seccomp_profile_clear(struct seccomp_profile *p)
{
    for (size_t i = 0; i < p->n_rules; i++)
        free(p->rules[i].name);
    free(p->rules);
    free(p->archs);
    strv_clear(&p->flags);
    *p = (struct seccomp_profile){0};
}

int seccomp_profile_add(struct seccomp_profile *p, const char *name, uint32_t action,
                        const struct seccomp_arg *args, size_t n_args, struct err *err)
{
    if (p->n_rules >= LIMIT_SECCOMP_RULES)
        return err_set(err, ERR_EXHAUSTED, "more than %d rules", LIMIT_SECCOMP_RULES);
    if (p->n_rules == p->room) {
        p->room = p->room > 0 ? 2 * p->room : 64;
        p->rules = xrealloc(p->rules, p->room, sizeof(*p->rules));
    }
    struct seccomp_rule *r = &p->rules[p->n_rules++];
    *r = (struct seccomp_rule){.name = xstrdup(name), .action = action, .n_args = n_args};
    if (n_args > 0)
        memcpy(r->args, args, n_args * sizeof(*args));
    return 0;
}

/* Whether programs of this architecture can run beside the machine's own. */
static bool runs_here(uint32_t arch)
{
    uint32_t native = seccomp_arch_native();
    if (arch == native)
        return true;
    switch (native) {
    case SCMP_ARCH_X86_64:
        return arch == SCMP_ARCH_X86 || arch == SCMP_ARCH_X32;
    case SCMP_ARCH_AARCH64:
        return arch == SCMP_ARCH_ARM;
    case SCMP_ARCH_S390X:
        return arch == SCMP_ARCH_S390;
    default:
        return false;
    }
}

void seccomp_profile_add_arch(struct seccomp_profile *p, uint32_t arch)
{
    if (!runs_here(arch))
        return;
    for (size_t i = 0; i < p->n_archs; i++) {
        if (p->archs[i] == arch)
            return;
    }
    p->archs = xrealloc(p->archs, p->n_archs + 1, sizeof(*p->archs));
    p->archs[p->n_archs++] = arch;
}

/* --- words --- */

/* SCMP_ACT_*; the errno is added by the caller. */
static int parse_action(const char *name, uint32_t *action, struct err *err)
{
    static const struct {
        const char *name;
        uint32_t action;
    } known[] = {
        {"SCMP_ACT_ALLOW", SCMP_ACT_ALLOW},
        {"SCMP_ACT_ERRNO", SCMP_ACT_ERRNO(0)},
        {"SCMP_ACT_KILL", SCMP_ACT_KILL},
        {"SCMP_ACT_KILL_THREAD", SCMP_ACT_KILL_THREAD},
        {"SCMP_ACT_KILL_PROCESS", SCMP_ACT_KILL_PROCESS},
        {"SCMP_ACT_LOG", SCMP_ACT_LOG},
        {"SCMP_ACT_TRACE", SCMP_ACT_TRACE(0)},
        {"SCMP_ACT_TRAP", SCMP_ACT_TRAP},
    };
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (strcmp(name, known[i].name) == 0) {
            *action = known[i].action;
            return 0;
        }
    }
    if (strcmp(name, "SCMP_ACT_NOTIFY") == 0)
        return err_set(err, ERR_INVALID,
                       "action SCMP_ACT_NOTIFY: a listener on the host cannot serve a guest");
    return err_set(err, ERR_INVALID, "unknown action \"%.64s\"", name);
}

static int parse_op(const char *name, int *op, struct err *err)
{
    static const struct {
        const char *name;
        enum scmp_compare op;
    } known[] = {
        {"SCMP_CMP_NE", SCMP_CMP_NE},
        {"SCMP_CMP_LT", SCMP_CMP_LT},
        {"SCMP_CMP_LE", SCMP_CMP_LE},
        {"SCMP_CMP_EQ", SCMP_CMP_EQ},
        {"SCMP_CMP_GE", SCMP_CMP_GE},
        {"SCMP_CMP_GT", SCMP_CMP_GT},
        {"SCMP_CMP_MASKED_EQ", SCMP_CMP_MASKED_EQ},
    };
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (strcmp(name, known[i].name) == 0) {
            *op = (int)known[i].op;
            return 0;
        }
    }
    return err_set(err, ERR_INVALID, "unknown comparison \"%.64s\"", name);
}

/* "SCMP_ARCH_X86_64"; 0 with *err when it is none. */
static uint32_t parse_arch(const char *name, struct err *err)
{
    char lower[32];
    const char *bare = str_starts(name, "SCMP_ARCH_") ? name + strlen("SCMP_ARCH_") : name;
    size_t n = strlen(bare);
    uint32_t arch = 0;
    if (n < sizeof(lower)) {
        for (size_t i = 0; i <= n; i++)
            lower[i] = (char)(bare[i] >= 'A' && bare[i] <= 'Z' ? bare[i] + ('a' - 'A') : bare[i]);
        arch = seccomp_arch_resolve_name(lower);
    }
    /* newer than this libseccomp, and no machine that it could be used on */
    if (arch == 0 && n < sizeof(lower) && strcmp(lower, "loongarch64") == 0)
        return UINT32_MAX;
    if (arch == 0)
        (void)err_set(err, ERR_INVALID, "unknown architecture \"%.64s\"", name);
    return arch;
}

/* As Docker's profiles call this machine. */
static const char *go_arch(void)
{
    switch (seccomp_arch_native()) {
    case SCMP_ARCH_X86_64:
        return "amd64";
    case SCMP_ARCH_AARCH64:
        return "arm64";
    case SCMP_ARCH_PPC64LE:
        return "ppc64le";
    case SCMP_ARCH_S390X:
        return "s390x";
    case SCMP_ARCH_RISCV64:
        return "riscv64";
    default:
        return "";
    }
}

/* --- JSON --- */

/* NULL and success when the member is missing or null. */
static int get_list(const json_t *o, const char *key, const json_t **list, struct err *err)
{
    *list = json_object_get(o, key);
    if (json_is_null(*list))
        *list = NULL;
    if (*list != NULL && !json_is_array(*list))
        return err_set(err, ERR_INVALID, "\"%s\" is no list", key);
    return 0;
}

static int get_object(const json_t *o, const char *key, const json_t **value, struct err *err)
{
    *value = json_object_get(o, key);
    if (json_is_null(*value))
        *value = NULL;
    if (*value != NULL && !json_is_object(*value))
        return err_set(err, ERR_INVALID, "\"%s\" is no object", key);
    return 0;
}

/* An errno for an action that takes one; *set says whether it is there. */
static int get_errno(const json_t *o, const char *key, bool *set, uint16_t *value, struct err *err)
{
    const json_t *v = json_object_get(o, key);
    *set = v != NULL && !json_is_null(v);
    *value = EPERM;
    if (!*set)
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > UINT16_MAX)
        return err_set(err, ERR_INVALID, "\"%s\" is no errno", key);
    *value = (uint16_t)json_integer_value(v);
    return 0;
}

static int get_action(const json_t *o, const char *key, const char *errno_key, uint32_t *action,
                      struct err *err)
{
    const char *name = json_string_value(json_object_get(o, key));
    bool set;
    uint16_t value;
    if (name == NULL)
        return err_set(err, ERR_INVALID, "\"%s\" is missing or no text", key);
    if (parse_action(name, action, err) < 0 || get_errno(o, errno_key, &set, &value, err) < 0)
        return -1;
    if (*action == SCMP_ACT_ERRNO(0))
        *action = SCMP_ACT_ERRNO(value);
    else if (*action == SCMP_ACT_TRACE(0))
        *action = SCMP_ACT_TRACE(value);
    else if (set)
        return err_set(err, ERR_INVALID, "\"%s\" does not go with %s", errno_key, name);
    return 0;
}

static int get_u64(const json_t *o, const char *key, uint64_t *out, struct err *err)
{
    const json_t *v = json_object_get(o, key);
    *out = 0;
    if (v == NULL || json_is_null(v))
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return err_set(err, ERR_INVALID, "argument: \"%s\" is no number from 0 on", key);
    *out = (uint64_t)json_integer_value(v);
    return 0;
}

static int get_arg(const json_t *o, struct seccomp_arg *a, struct err *err)
{
    uint64_t index;
    const char *op = json_string_value(json_object_get(o, "op"));
    if (op == NULL)
        return err_set(err, ERR_INVALID, "argument without \"op\"");
    if (get_u64(o, "index", &index, err) < 0 || get_u64(o, "value", &a->value, err) < 0 ||
        get_u64(o, "valueTwo", &a->value_two, err) < 0 || parse_op(op, &a->op, err) < 0)
        return -1;
    if (index >= SECCOMP_ARGS)
        return err_set(err, ERR_INVALID, "argument index %llu: a system call has %d",
                       (unsigned long long)index, SECCOMP_ARGS);
    a->index = (unsigned)index;
    return 0;
}

/* How many, or -1. */
static int get_args(const json_t *call, struct seccomp_arg args[SECCOMP_ARGS], struct err *err)
{
    const json_t *list;
    const json_t *item;
    size_t i;
    if (get_list(call, "args", &list, err) < 0)
        return -1;
    if (json_array_size(list) > SECCOMP_ARGS)
        return err_set(err, ERR_INVALID, "more than %d arguments", SECCOMP_ARGS);
    json_array_foreach(list, i, item)
    {
        if (get_arg(item, &args[i], err) < 0)
            return -1;
    }
    return (int)json_array_size(list);
}

/* --- conditions --- */

/* -1: wrong; 0: not that kernel or later; 1: that one or later. */
static int kernel_reaches(const json_t *o, const struct seccomp_facts *facts, struct err *err)
{
    const char *text = json_string_value(o);
    unsigned kernel;
    unsigned patch;
    int end = 0;
    if (text == NULL || sscanf(text, "%4u.%4u%n", &kernel, &patch, &end) != 2 || text[end] != '\0')
        return err_set(err, ERR_INVALID, "\"minKernel\" is no version like \"4.8\"");
    return facts->kernel > kernel || (facts->kernel == kernel && facts->patch >= patch);
}

/* How many of the listed capabilities are held; *total is how many are listed. */
static int count_caps(const json_t *o, const struct seccomp_facts *facts, int *total,
                      struct err *err)
{
    const json_t *list;
    const json_t *item;
    size_t i;
    int held = 0;
    if (get_list(o, "caps", &list, err) < 0)
        return -1;
    *total = (int)json_array_size(list);
    json_array_foreach(list, i, item)
    {
        int cap = json_is_string(item) ? caps_index(json_string_value(item)) : -1;
        /* one that is newer than this release is held by nobody */
        held += cap >= 0 && (facts->caps >> (unsigned)cap & 1) != 0;
    }
    return held;
}

static int lists_this_arch(const json_t *o, int *total, struct err *err)
{
    const json_t *list;
    const json_t *item;
    size_t i;
    if (get_list(o, "arches", &list, err) < 0)
        return -1;
    *total = (int)json_array_size(list);
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(item);
        if (name != NULL && strcmp(name, go_arch()) == 0)
            return 1;
    }
    return 0;
}

/* One of: includes, where all of a kind must hold, and excludes, where none may. -1, or whether the
 * rule stays. */
static int condition_holds(const json_t *call, const char *key, bool include,
                           const struct seccomp_facts *facts, struct err *err)
{
    const json_t *o;
    int n_caps = 0;
    int n_archs = 0;
    if (get_object(call, key, &o, err) < 0)
        return -1;
    if (o == NULL)
        return 1;
    int held = count_caps(o, facts, &n_caps, err);
    int here = held < 0 ? -1 : lists_this_arch(o, &n_archs, err);
    if (here < 0)
        return -1;
    const json_t *min = json_object_get(o, "minKernel");
    bool has_min = min != NULL && !json_is_null(min) && json_string_value(min) != NULL &&
                   *json_string_value(min) != '\0';
    int reached = has_min ? kernel_reaches(min, facts, err) : 0;
    if (reached < 0)
        return -1;
    if (include)
        return held == n_caps && (n_archs == 0 || here > 0) && (!has_min || reached > 0);
    return held == 0 && here == 0 && (!has_min || reached == 0);
}

/* --- the profile --- */

static int add_name(struct seccomp_profile *p, const json_t *name, uint32_t action,
                    const struct seccomp_arg *args, int n_args, struct err *err)
{
    const char *text = json_string_value(name);
    if (text == NULL || *text == '\0' || strlen(text) > LIMIT_NAME)
        return err_set(err, ERR_INVALID, "a system call's name is no name");
    return seccomp_profile_add(p, text, action, args, (size_t)n_args, err);
}

static int parse_call(const json_t *call, const struct seccomp_facts *facts,
                      struct seccomp_profile *p, struct err *err)
{
    struct seccomp_arg args[SECCOMP_ARGS];
    const json_t *names;
    const json_t *item;
    uint32_t action;
    size_t i;
    if (!json_is_object(call))
        return err_set(err, ERR_INVALID, "is no object");
    if (get_action(call, "action", "errnoRet", &action, err) < 0 ||
        get_list(call, "names", &names, err) < 0)
        return -1;
    int n_args = get_args(call, args, err);
    int included = n_args < 0 ? -1 : condition_holds(call, "includes", true, facts, err);
    int kept = included < 0 ? -1 : condition_holds(call, "excludes", false, facts, err);
    if (kept < 0)
        return -1;
    const json_t *name = json_object_get(call, "name"); /* Docker's older form */
    if (name == NULL && json_array_size(names) == 0)
        return err_set(err, ERR_INVALID, "names no system call");
    if (included == 0 || kept == 0)
        return 0;
    if (name != NULL && add_name(p, name, action, args, n_args, err) < 0)
        return -1;
    json_array_foreach(names, i, item)
    {
        if (add_name(p, item, action, args, n_args, err) < 0)
            return -1;
    }
    return 0;
}

static int parse_calls(const json_t *root, const struct seccomp_facts *facts,
                       struct seccomp_profile *p, struct err *err)
{
    const json_t *list;
    const json_t *item;
    size_t i;
    if (get_list(root, "syscalls", &list, err) < 0)
        return -1;
    json_array_foreach(list, i, item)
    {
        if (parse_call(item, facts, p, err) < 0)
            return err_wrap(err, "syscalls[%zu]", i);
    }
    return 0;
}

static int add_archs(const json_t *list, struct seccomp_profile *p, struct err *err)
{
    const json_t *item;
    size_t i;
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(item);
        uint32_t arch = name != NULL ? parse_arch(name, err) : 0;
        if (name == NULL)
            return err_set(err, ERR_INVALID, "an architecture is no text");
        if (arch == 0)
            return -1;
        seccomp_profile_add_arch(p, arch);
    }
    return 0;
}

/* Docker's: which other architectures come with the machine's own. */
static int parse_arch_map(const json_t *map, struct seccomp_profile *p, struct err *err)
{
    const json_t *entry;
    size_t i;
    json_array_foreach(map, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "architecture"));
        const json_t *subs;
        if (name == NULL)
            return err_set(err, ERR_INVALID, "archMap[%zu] has no \"architecture\"", i);
        uint32_t arch = parse_arch(name, err);
        if (arch == 0 || get_list(entry, "subArchitectures", &subs, err) < 0)
            return -1;
        if (arch == seccomp_arch_native() && add_archs(subs, p, err) < 0)
            return -1;
    }
    return 0;
}

static int parse_archs(const json_t *root, struct seccomp_profile *p, struct err *err)
{
    const json_t *plain;
    const json_t *map;
    if (get_list(root, "architectures", &plain, err) < 0 ||
        get_list(root, "archMap", &map, err) < 0)
        return -1;
    if (json_array_size(plain) > 0 && json_array_size(map) > 0)
        return err_set(err, ERR_INVALID, "both \"architectures\" and \"archMap\" are given");
    if (json_array_size(plain) > LIMIT_SECCOMP_ARCHS || json_array_size(map) > LIMIT_SECCOMP_ARCHS)
        return err_set(err, ERR_INVALID, "more than %d architectures", LIMIT_SECCOMP_ARCHS);
    return add_archs(plain, p, err) < 0 ? -1 : parse_arch_map(map, p, err);
}

static int parse_flags(const json_t *root, struct seccomp_profile *p, struct err *err)
{
    static const char *const known[] = {
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    };
    const json_t *list;
    const json_t *item;
    size_t i;
    if (get_list(root, "flags", &list, err) < 0)
        return -1;
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(item);
        size_t k = 0;
        while (k < ARRAY_LEN(known) && (name == NULL || strcmp(name, known[k]) != 0))
            k++;
        if (k == ARRAY_LEN(known))
            return err_set(err, ERR_INVALID, "flag \"%.64s\" is not supported",
                           name != NULL ? name : "?");
        bool twice = false;
        for (size_t n = 0; n < p->flags.n; n++)
            twice = twice || strcmp(p->flags.v[n], name) == 0;
        if (!twice)
            strv_add(&p->flags, name);
    }
    return 0;
}

int seccomp_profile_parse(const void *json, size_t len, const struct seccomp_facts *facts,
                          struct seccomp_profile *p, struct err *err)
{
    json_error_t at;
    *p = (struct seccomp_profile){0};
    json_auto_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &at);
    if (root == NULL)
        return err_set(err, ERR_INVALID, "line %d: %s", at.line, at.text);
    if (!json_is_object(root))
        return err_set(err, ERR_INVALID, "the profile is no object");
    const char *listener = json_string_value(json_object_get(root, "listenerPath"));
    if (!str_empty(listener))
        return err_set(err, ERR_INVALID,
                       "\"listenerPath\": a listener on the host cannot serve a guest");
    if (get_action(root, "defaultAction", "defaultErrnoRet", &p->default_action, err) == 0 &&
        parse_archs(root, p, err) == 0 && parse_flags(root, p, err) == 0 &&
        parse_calls(root, facts, p, err) == 0)
        return 0;
    seccomp_profile_clear(p);
    return -1;
}
