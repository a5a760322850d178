#include "agent/cgroup_file.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

char *cgroup_file_text(const char *dir, const char *name)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    return path != NULL ? fs_read(path, KiB(64), NULL, NULL) : NULL;
}

uint64_t cgroup_file_number(const char *dir, const char *name)
{
    auto_free char *text = cgroup_file_text(dir, name);
    uint64_t n = 0;
    if (text == NULL)
        return 0;
    text[strcspn(text, "\n")] = '\0';
    return str_to_u64(text, &n) == 0 ? n : 0;
}
