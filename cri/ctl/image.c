/* aspisctl image pull, ls, rm, import */
#include <string.h>

#include "base/str.h"
#include "cri/ctl/ctl.h"
#include "cri/ctl/progress.h"
#include "proto/admin.pb-c.h"

/* What a stream of events has told so far. */
struct transfer {
    struct ctl *ctl;
    struct progress *progress;
    const char *id; /* pull */
};

static int on_pull_event(void *arg, const ProtobufCMessage *m, struct err *err)
{
    (void)err;
    struct transfer *t = arg;
    const Aspis__V1__PullImageEvent *e = (const Aspis__V1__PullImageEvent *)m;
    if (e->progress != NULL)
        progress_show(t->progress, e->progress);
    else
        t->id = arena_strdup(t->ctl->arena, e->image_ref);
    return 0;
}

const char *ctl_pull(struct ctl *ctl, const char *image, struct err *err)
{
    Aspis__V1__PullImageRequest r = ASPIS__V1__PULL_IMAGE_REQUEST__INIT;
    r.image = (char *)(uintptr_t)image;
    struct transfer t = {.ctl = ctl, .progress = progress_new(stderr)};
    int rc = gclient_stream(ctl->client, ADMIN_SERVICE "PullImage", &r.base,
                            &aspis__v1__pull_image_event__descriptor, on_pull_event, &t, 0, err);
    progress_free(t.progress);
    if (rc == 0 && str_empty(t.id))
        (void)err_set(err, ERR_INTERNAL, "image `%s`: the daemon named no id", image);
    return rc == 0 && !str_empty(t.id) ? t.id : NULL;
}

static int pull(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc != 2)
        return ctl_usage(err, "image pull needs one IMAGE");
    const char *id = ctl_pull(ctl, argv[1], err);
    if (id == NULL)
        return -1;
    (void)puts(id);
    return 0;
}

static int on_import_event(void *arg, const ProtobufCMessage *m, struct err *err)
{
    (void)err;
    struct transfer *t = arg;
    const Aspis__V1__ImportImageEvent *e = (const Aspis__V1__ImportImageEvent *)m;
    if (e->progress != NULL)
        progress_show(t->progress, e->progress);
    for (size_t i = 0; i < e->n_image_ids; i++) {
        ctl_puts(stdout, e->image_ids[i]);
        (void)fputc('\n', stdout);
    }
    return 0;
}

static int import(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc != 2 && argc != 3)
        return ctl_usage(err, "image import needs a PATH, and perhaps a NAME");
    auto_free char *path = realpath(argv[1], NULL);
    if (path == NULL)
        return err_sys(err, errno, "`%s`", argv[1]);
    Aspis__V1__ImportImageRequest r = ASPIS__V1__IMPORT_IMAGE_REQUEST__INIT;
    r.path = path;
    if (argc == 3)
        r.name = argv[2];
    struct transfer t = {.ctl = ctl, .progress = progress_new(stderr)};
    int rc =
        gclient_stream(ctl->client, ADMIN_SERVICE "ImportImage", &r.base,
                       &aspis__v1__import_image_event__descriptor, on_import_event, &t, 0, err);
    progress_free(t.progress);
    return rc;
}

static void image_rows(struct table *t, const Runtime__V1__Image *i)
{
    char text[32];
    size_t rows = i->n_repo_tags > 0 ? i->n_repo_tags : 1;
    for (size_t k = 0; k < rows; k++) {
        if (i->n_repo_tags > 0)
            table_cell(t, i->repo_tags[k]);
        else
            table_cell(t, i->n_repo_digests > 0 ? i->repo_digests[0] : "<none>");
        table_cell(t, ctl_short_id(i->id, text));
        table_cell(t, ctl_size(i->size, text));
    }
}

static int ls(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc > 1)
        return ctl_usage(err, "image ls takes no argument `%s`", argv[1]);
    Runtime__V1__ListImagesRequest r = RUNTIME__V1__LIST_IMAGES_REQUEST__INIT;
    const Runtime__V1__ListImagesResponse *list = (const Runtime__V1__ListImagesResponse *)ctl_call(
        ctl, IMAGE_SERVICE "ListImages", &r.base, &runtime__v1__list_images_response__descriptor,
        err);
    if (list == NULL)
        return -1;
    struct table t = {.n_columns = 3};
    table_cell(&t, "IMAGE");
    table_cell(&t, "ID");
    table_cell(&t, "SIZE");
    for (size_t i = 0; i < list->n_images; i++)
        image_rows(&t, list->images[i]);
    table_print(&t, stdout);
    return 0;
}

/* CRI removes what is not there without a word; a person who mistyped wants to know. */
static int remove_one(struct ctl *ctl, char *name, struct err *err)
{
    Runtime__V1__ImageSpec spec = RUNTIME__V1__IMAGE_SPEC__INIT;
    spec.image = name;
    Runtime__V1__ImageStatusRequest sr = RUNTIME__V1__IMAGE_STATUS_REQUEST__INIT;
    sr.image = &spec;
    const Runtime__V1__ImageStatusResponse *s = (const Runtime__V1__ImageStatusResponse *)ctl_call(
        ctl, IMAGE_SERVICE "ImageStatus", &sr.base, &runtime__v1__image_status_response__descriptor,
        err);
    if (s == NULL)
        return -1;
    if (s->image == NULL)
        return err_set(err, ERR_NOT_FOUND, "no image `%s`", name);
    Runtime__V1__RemoveImageRequest rr = RUNTIME__V1__REMOVE_IMAGE_REQUEST__INIT;
    rr.image = &spec;
    if (ctl_call(ctl, IMAGE_SERVICE "RemoveImage", &rr.base,
                 &runtime__v1__remove_image_response__descriptor, err) == NULL)
        return -1;
    (void)puts(name);
    return 0;
}

static int rm(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc < 2)
        return ctl_usage(err, "image rm needs at least one IMAGE");
    for (int i = 1; i < argc; i++)
        if (remove_one(ctl, argv[i], err) < 0)
            return -1;
    return 0;
}

int cmd_image(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    static const struct {
        const char *name;
        int (*fn)(struct ctl *ctl, int argc, char **argv, struct err *err);
    } commands[] = {{"pull", pull}, {"ls", ls}, {"rm", rm}, {"import", import}};
    for (size_t i = 0; argc > 1 && i < ARRAY_LEN(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].fn(ctl, argc - 1, argv + 1, err);
    return ctl_usage(err, "image needs one of pull, ls, rm, import");
}
