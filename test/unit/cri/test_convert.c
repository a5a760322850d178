/* cri/convert: maps, copies and statuses built in a call's arena; and what a full arena does to
 * them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cri/convert.h"
#include "cri/dispatch.h"
#include "cri/spec.h"

#define OWN(s) ((char *)(uintptr_t)(s))

typedef Runtime__V1__ContainerConfig__LabelsEntry Label;

static struct call make_call(struct arena *a)
{
    static const struct method method = {.name = "Test"};
    return (struct call){.arena = a, .method = &method};
}

static void fill_labels(Label *store, Label **list, size_t n, const char *const *pairs)
{
    for (size_t i = 0; i < n; i++) {
        runtime__v1__container_config__labels_entry__init(&store[i]);
        store[i].key = OWN(pairs[2 * i]);
        store[i].value = OWN(pairs[2 * i + 1]);
        list[i] = &store[i];
    }
}

static void test_maps(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(1 << 20);
    struct call call = make_call(a);
    Label store[2];
    Label *labels[2];
    fill_labels(store, labels, 2, (const char *const[]){"a", "1", "b", ""});
    Runtime__V1__ContainerStatus__LabelsEntry **out = convert_map(
        &call, labels, 2, &runtime__v1__container_status__labels_entry__descriptor, &err);
    assert_non_null(out);
    assert_ptr_not_equal(out[0]->key, labels[0]->key);
    assert_string_equal(out[0]->key, "a");
    assert_string_equal(out[1]->value, "");
    assert_ptr_equal(out[0]->base.descriptor,
                     &runtime__v1__container_status__labels_entry__descriptor);
    assert_non_null(convert_map(&call, NULL, 0,
                                &runtime__v1__container_status__labels_entry__descriptor, &err));
    Runtime__V1__StatusResponse__InfoEntry **info =
        convert_pairs(&call, (const char *const[]){"k", "v", "l", NULL}, 2,
                      &runtime__v1__status_response__info_entry__descriptor, &err);
    assert_string_equal(info[0]->value, "v");
    assert_string_equal(info[1]->key, "l");
    assert_string_equal(info[1]->value, "");
}

static void test_selectors(void **state)
{
    (void)state;
    Label store[2];
    Label *labels[2];
    Label want_store[2];
    Label *want[2];
    fill_labels(store, labels, 2, (const char *const[]){"app", "web", "tier", "x"});
    assert_true(convert_selector_matches(labels, 2, NULL, 0));
    fill_labels(want_store, want, 2, (const char *const[]){"tier", "x", "app", "web"});
    assert_true(convert_selector_matches(labels, 2, want, 2));
    assert_false(convert_selector_matches(labels, 1, want, 2));
    assert_false(convert_selector_matches(NULL, 0, want, 1));
    fill_labels(want_store, want, 1, (const char *const[]){"app", "we"});
    assert_false(convert_selector_matches(labels, 2, want, 1));
    fill_labels(want_store, want, 1, (const char *const[]){"web", "app"});
    assert_false(convert_selector_matches(labels, 2, want, 1));
}

struct thing {
    Runtime__V1__ContainerConfig config;
    Runtime__V1__ContainerMetadata metadata;
    Runtime__V1__ImageSpec image;
    struct container c;
};

static void init(struct thing *t)
{
    memset(t, 0, sizeof(*t));
    runtime__v1__container_config__init(&t->config);
    runtime__v1__container_metadata__init(&t->metadata);
    runtime__v1__image_spec__init(&t->image);
    t->metadata.name = OWN("name");
    t->metadata.attempt = 4;
    t->image.image = OWN("sha256:abc");
    t->config.metadata = &t->metadata;
    t->config.image = &t->image;
    t->c.config = &t->config;
    t->c.rec = (struct container_record){.id = OWN("id"),
                                         .phase = CONTAINER_EXITED,
                                         .image_id = OWN("sha256:abc"),
                                         .image_ref = OWN("r@sha256:def"),
                                         .stop_signal = OWN("SIGTERM"),
                                         .created_at = 1,
                                         .started_at = 2,
                                         .finished_at = 3,
                                         .exit_code = 137,
                                         .reason = OWN("OOMKilled"),
                                         .message = OWN(""),
                                         .log_path = OWN("/log"),
                                         .uid = 5,
                                         .gid = 6,
                                         .groups = OWN("7 8 4294967295")};
}

static void test_status(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(1 << 20);
    struct call call = make_call(a);
    struct thing t;
    init(&t);
    Runtime__V1__ContainerStatus *s = convert_container_status(&call, &t.c, &err);
    assert_non_null(s);
    assert_string_equal(s->id, "id");
    assert_string_equal(s->metadata->name, "name");
    assert_int_equal(s->metadata->attempt, 4);
    assert_int_equal(s->state, RUNTIME__V1__CONTAINER_STATE__CONTAINER_EXITED);
    assert_true(s->created_at == 1 && s->started_at == 2 && s->finished_at == 3);
    assert_int_equal(s->exit_code, 137);
    assert_string_equal(s->image->image, "sha256:abc");
    assert_string_equal(s->image_ref, "r@sha256:def");
    assert_string_equal(s->reason, "OOMKilled");
    assert_int_equal(s->user->linux->uid, 5);
    assert_int_equal(s->user->linux->n_supplemental_groups, 3);
    assert_int_equal(s->user->linux->supplemental_groups[2], 4294967295);
    assert_int_equal(s->stop_signal, RUNTIME__V1__SIGNAL__SIGNAL_SIGTERM);
    assert_null(s->resources);
    t.image.user_specified_image = OWN("busybox:1");
    s = convert_container_status(&call, &t.c, &err);
    assert_string_equal(s->image->image, "busybox:1");
}

static Runtime__V1__ContainerState shown(enum container_phase phase, bool unsure)
{
    const struct container c = {.rec.phase = phase, .start_unsure = unsure};
    return convert_container_state(&c);
}

static void test_phases(void **state)
{
    (void)state;
    assert_int_equal(shown(CONTAINER_CREATED, false), 0);
    assert_int_equal(shown(CONTAINER_RUNNING, false), 1);
    assert_int_equal(shown(CONTAINER_EXITED, false), 2);
    assert_int_equal(shown(CONTAINER_REMOVING, false), 2);
    assert_int_equal(shown(CONTAINER_CREATING, false), 3);
    assert_int_equal(shown((enum container_phase)99, false), 3);
    /* it may run, and nobody knows */
    assert_int_equal(shown(CONTAINER_CREATED, true), 3);
    assert_int_equal(shown(CONTAINER_EXITED, true), 2);
}

/* Each of CRI's signals: the number it has in a container, recorded by name, told back as a CRI
 * value of the same number. */
static void test_every_signal_comes_back(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(1 << 24);
    struct call call = make_call(a);
    const struct image_config image = {.stop_signal = OWN("")};
    const ProtobufCEnumDescriptor *d = &runtime__v1__signal__descriptor;
    for (unsigned i = 0; i < d->n_values; i++) {
        struct thing t;
        char name[16];
        char back[16];
        init(&t);
        t.config.stop_signal = (Runtime__V1__Signal)d->values[i].value;
        int sig = spec_stop_signal(&t.config, &image, name);
        if (d->values[i].value == 0)
            assert_int_equal(sig, 15);
        else
            assert_int_equal(sig, spec_signal_number(d->values[i].name + strlen("SIGNAL_")));
        assert_true(sig >= 1 && sig <= 64);
        assert_int_equal(spec_signal_number(name), sig);
        t.c.rec.stop_signal = name;
        Runtime__V1__ContainerStatus *s = convert_container_status(&call, &t.c, &err);
        assert_non_null(s);
        assert_int_not_equal(s->stop_signal, RUNTIME__V1__SIGNAL__SIGNAL_RUNTIME_DEFAULT);
        t.config.stop_signal = s->stop_signal;
        assert_int_equal(spec_stop_signal(&t.config, &image, back), sig);
    }
}

static void test_damaged_record(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(1 << 20);
    struct call call = make_call(a);
    struct thing t;
    init(&t);
    t.c.rec.groups = OWN("1 x2  3");
    t.c.rec.stop_signal = OWN("SIG+++++++++++++++++++++++++++++++++++++++++++++++");
    Runtime__V1__ContainerStatus *s = convert_container_status(&call, &t.c, &err);
    assert_non_null(s);
    assert_int_equal(s->user->linux->n_supplemental_groups, 1);
    assert_int_equal(s->stop_signal, RUNTIME__V1__SIGNAL__SIGNAL_RUNTIME_DEFAULT);
}

/* Wherever the memory ends: an error, not a half-filled message. */
static void test_full_arena(void **state)
{
    (void)state;
    struct thing t;
    init(&t);
    Label store[2];
    fill_labels(store, t.config.labels = (Label *[2]){0}, 2,
                (const char *const[]){"some", "label", "another", "label"});
    t.config.n_labels = 2;
    size_t full = 0;
    for (size_t cap = 64; cap < 8192; cap += 16) {
        auto_err struct err err = ERR_INIT;
        auto_arena struct arena *a = arena_new(cap);
        struct call call = make_call(a);
        const Runtime__V1__ContainerStatus *s = convert_container_status(&call, &t.c, &err);
        if (s == NULL) {
            assert_int_equal(err.code, ERR_EXHAUSTED);
            full++;
        } else {
            assert_int_equal(err.code, ERR_OK);
            assert_true(protobuf_c_message_check(&s->base));
        }
        err_clear(&err);
        if (convert_copy(&call, &t.config.base, &err) == NULL)
            assert_int_equal(err.code, ERR_EXHAUSTED);
    }
    assert_true(full > 10 && full < 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_selectors),
        cmocka_unit_test(test_status),
        cmocka_unit_test(test_phases),
        cmocka_unit_test(test_every_signal_comes_back),
        cmocka_unit_test(test_damaged_record),
        cmocka_unit_test(test_full_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
