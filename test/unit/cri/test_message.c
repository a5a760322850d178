/* cri/message: what is refused in requests, byte by byte, and how replies are repaired. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "cri/message.h"
#include "proto/cri/v1/api.pb-c.h"

#define REQUEST (&runtime__v1__run_pod_sandbox_request__descriptor)

static void expect(const char *wire, size_t len, const char *message)
{
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(1));
    const ProtobufCMessage *m = message_unpack(REQUEST, wire, len, 100, a, &err);
    if (message == NULL) {
        assert_non_null(m);
    } else {
        assert_null(m);
        assert_string_equal(err_msg(&err), message);
        assert_int_equal(err.code, ERR_INVALID);
    }
}
#define EXPECT(wire, message) expect(wire, sizeof(wire) - 1, message)

static void test_wire(void **state)
{
    (void)state;
    EXPECT("", NULL);
    EXPECT("\x12\x02hi", NULL);                 /* runtime_handler = "hi" */
    EXPECT("\x0a\x04\x12\x02hi", NULL);         /* config.hostname = "hi" */
    EXPECT("\x0a\x06\x0a\x04\x0a\x02hi", NULL); /* config.metadata.name = "hi" */
    EXPECT("\xf8\x07\x01\x12\x01x", NULL);      /* a field of a newer client */
    EXPECT("\x12\x03hi", "RunPodSandboxRequest: broken protobuf: a value does not fit");
    EXPECT("\x12", "RunPodSandboxRequest: broken protobuf: a value does not fit");
    EXPECT("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
           "RunPodSandboxRequest: broken protobuf: a value does not fit");
    EXPECT("\x80", "RunPodSandboxRequest: broken protobuf: no field number");
    EXPECT("\x02\x01x", "RunPodSandboxRequest: broken protobuf: no field number");
    EXPECT("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
           "RunPodSandboxRequest: broken protobuf: no field number");
    EXPECT("\x13", "RunPodSandboxRequest: broken protobuf: a value does not fit"); /* group */
    EXPECT("\x10\x01", "RunPodSandboxRequest.runtime_handler: broken protobuf: wrong wire type");
    EXPECT("\x12\x02h\xff", "RunPodSandboxRequest.runtime_handler: the string is not valid UTF-8");
    EXPECT("\x12\x03h\0i", "RunPodSandboxRequest.runtime_handler: the string contains a NUL byte");
    EXPECT("\x0a\x06\x0a\x04\x0a\x02h\xc0",
           "RunPodSandboxRequest.config.metadata.name: the string is not valid UTF-8");
    /* The second label's value; maps are messages of key and value. */
    EXPECT("\x0a\x0c\x32\x03\x0a\x01k\x32\x05\x0a\x00\x12\x01\x80",
           "RunPodSandboxRequest.config.labels[1].value: the string is not valid UTF-8");
    /* dns_config.servers[2] */
    EXPECT("\x0a\x0b\x22\x09\x0a\x01x\x0a\x01y\x0a\x01\xf8",
           "RunPodSandboxRequest.config.dns_config.servers[2]: the string is not valid UTF-8");
    char long_string[103] = "\x12\x65";
    memset(long_string + 2, 'x', 101);
    expect(long_string, sizeof(long_string),
           "RunPodSandboxRequest.runtime_handler: the string is too long");
    long_string[1] = '\x64';
    expect(long_string, sizeof(long_string) - 1, NULL);
}

/* A NULL string list element and every shape of bad text. */
static void test_repair(void **state)
{
    (void)state;
    static char bad[] = "x\x80y", good[] = "good", cut[] = "z\xe2\x82";
    char *tags[] = {good, bad, cut};
    Runtime__V1__Int64Value uid = RUNTIME__V1__INT64_VALUE__INIT;
    uid.value = -7;
    Runtime__V1__Image image = RUNTIME__V1__IMAGE__INIT;
    image.id = bad;
    image.repo_tags = tags;
    image.n_repo_tags = 3;
    image.uid = &uid;
    Runtime__V1__Image *images[] = {&image};
    Runtime__V1__ListImagesResponse r = RUNTIME__V1__LIST_IMAGES_RESPONSE__INIT;
    r.images = images;
    r.n_images = 1;
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(1));
    size_t len;
    auto_free uint8_t *data = message_pack(&r.base, MiB(1), a, &len, &err);
    assert_non_null(data);
    const Runtime__V1__ListImagesResponse *back =
        runtime__v1__list_images_response__unpack(arena_allocator(a), len, data);
    assert_string_equal(back->images[0]->id, "x\xEF\xBF\xBDy");
    assert_string_equal(back->images[0]->repo_tags[0], "good");
    assert_string_equal(back->images[0]->repo_tags[1], "x\xEF\xBF\xBDy");
    assert_string_equal(back->images[0]->repo_tags[2], "z\xEF\xBF\xBD\xEF\xBF\xBD");
    assert_int_equal(back->images[0]->uid->value, -7);
    assert_string_equal(bad, "x\x80y"); /* ours stayed as it was */

    /* Good text costs the arena nothing. */
    image.id = good;
    image.n_repo_tags = 1;
    size_t used = arena_used(a);
    auto_free uint8_t *again = message_pack(&r.base, MiB(1), a, &len, &err);
    assert_non_null(again);
    assert_int_equal(arena_used(a), used);

    /* No room to repair, and too large. */
    auto_arena struct arena *tiny = arena_new(16);
    image.id = bad;
    assert_null(message_pack(&r.base, MiB(1), tiny, &len, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_null(message_pack(&r.base, 3, a, &len, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
}

static void test_empty(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(1));
    Runtime__V1__StopContainerResponse r = RUNTIME__V1__STOP_CONTAINER_RESPONSE__INIT;
    size_t len = 1;
    auto_free uint8_t *data = message_pack(&r.base, MiB(1), a, &len, &err);
    assert_non_null(data);
    assert_int_equal(len, 0);
}

static void test_text(void **state)
{
    (void)state;
    auto_free char *a = message_text("abc", 10);
    assert_string_equal(a, "abc");
    auto_free char *b = message_text("ab\xe2\x82\xac", 4); /* not half a character */
    assert_string_equal(b, "ab");
    auto_free char *c = message_text("ab\xe2\x82\xac", 5);
    assert_string_equal(c, "ab\xe2\x82\xac");
    auto_free char *f = message_text("a\033[2J\r\n\tb\177", 20);
    assert_string_equal(f, "a?[2J?\n\tb?");
    auto_free char *d = message_text("\xff", 5);
    assert_string_equal(d, "\xEF\xBF\xBD");
    auto_free char *e = message_text("\x80\x80\x80\x80", 3);
    assert_string_equal(e, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire),
        cmocka_unit_test(test_repair),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
