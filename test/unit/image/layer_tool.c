/*
 * layer_tool - layer_convert() and image_meta_build() for check_layers.py.
 *
 *     layer_tool convert UNPACKER MAX_BYTES OUT [JAIL UID] < TAR   prints diff_id, bytes, entries,
 * size layer_tool merge OUT LAYER...
 *
 * Exit status 0, or 10 + the error's code with its text on stderr.
 */
#include <signal.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/image/layer.h"

static int convert(char **argv, int n, struct err *err)
{
    struct image_options o = {.unpacker = argv[0]};
    uint64_t uid = 0;
    if (str_to_u64(argv[1], &o.max_layer_bytes) < 0 || (n == 5 && str_to_u64(argv[4], &uid) < 0))
        return err_set(err, ERR_INVALID, "usage");
    if (n == 5) {
        o.jail_helper = argv[3];
        o.unpack_uid = (uint32_t)uid;
    }
    struct layer_result r;
    if (layer_convert(&o, dup(0), argv[2], &r, NULL, err) < 0)
        return -1;
    (void)printf("%s %llu %llu %llu\n", r.diff_id, (unsigned long long)r.uncompressed_bytes,
                 (unsigned long long)r.entries, (unsigned long long)r.file_bytes);
    return 0;
}

static int import(char **argv, int n, struct err *err)
{
    const struct image_options o = {
        .root = argv[0], .unpacker = argv[1], .max_layer_bytes = MiB(256), .max_downloads = 1};
    auto_strv struct strv ids = {0};
    struct image_store *s = image_store_open(&o, err);
    if (s == NULL)
        return -1;
    int rc = image_import(s, argv[2], n == 4 ? argv[3] : NULL, NULL, NULL, NULL, &ids, err);
    for (size_t i = 0; rc == 0 && i < ids.n; i++) {
        auto_image struct image *img = image_find(s, ids.v[i], err);
        if (img == NULL) {
            rc = -1;
            break;
        }
        (void)printf("%s", img->id);
        for (size_t k = 0; k < img->repo_tags.n; k++)
            (void)printf(" %s", img->repo_tags.v[k]);
        for (size_t k = 0; k < img->repo_digests.n; k++)
            (void)printf(" %s", img->repo_digests.v[k]);
        (void)printf(" %llu\n", (unsigned long long)img->size);
    }
    image_store_close(s);
    return rc;
}

int main(int argc, char **argv)
{
    auto_err struct err err = ERR_INIT;
    int rc;
    (void)signal(SIGPIPE, SIG_IGN);
    if (argc >= 5 && strcmp(argv[1], "convert") == 0) {
        rc = convert(argv + 2, argc - 2, &err);
    } else if (argc >= 3 && strcmp(argv[1], "merge") == 0) {
        const char *layers[128];
        size_t n = 0;
        for (int i = 3; i < argc && n < ARRAY_LEN(layers); i++)
            layers[n++] = argv[i];
        rc = image_meta_build(layers, n, argv[2], &err);
    } else if (argc >= 5 && strcmp(argv[1], "import") == 0) {
        rc = import(argv + 2, argc - 2, &err);
    } else {
        rc = err_set(&err, ERR_INVALID, "usage");
    }
    if (rc < 0) {
        (void)fprintf(stderr, "%s\n", err_msg(&err));
        return 10 + (int)err.code;
    }
    return 0;
}
