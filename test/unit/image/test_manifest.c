/* cri/image/manifest: indexes, manifests and configs, sound and hostile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/limits.h"
#include "cri/image/manifest.h"

#define A64 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define B64 "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
#define OCI_M "application/vnd.oci.image.manifest.v1+json"
#define OCI_I "application/vnd.oci.image.index.v1+json"
#define CONFIG                                                                                     \
    "\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\","                      \
    "\"digest\":\"sha256:" A64 "\",\"size\":10}"
#define LAYER                                                                                      \
    "{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:" B64      \
    "\",\"size\":20}"
#define GOOD "{\"schemaVersion\":2," CONFIG ",\"layers\":[" LAYER "," LAYER "]}"

static struct manifest *parse_ok(const char *json, const char *type)
{
    auto_err struct err err = ERR_INIT;
    struct manifest *m = NULL;

    if (manifest_parse(json, strlen(json), type, &m, &err) < 0)
        fail_msg("%s", err_msg(&err));
    return m;
}

static void refused(const char *json, const char *type, const char *needle)
{
    auto_err struct err err = ERR_INIT;
    struct manifest *m = NULL;

    if (manifest_parse(json, strlen(json), type, &m, &err) == 0)
        fail_msg("accepted: %s", json);
    assert_int_equal(err.code, ERR_INVALID);
    if (strstr(err_msg(&err), needle) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", needle, err_msg(&err));
}

static void test_image(void **state)
{
    (void)state;
    auto_manifest struct manifest *m = parse_ok(GOOD, OCI_M "; charset=utf-8");
    auto_manifest struct manifest *n = parse_ok(GOOD, NULL);
    auto_manifest struct manifest *o = parse_ok(GOOD, "text/plain");

    assert_int_equal(m->kind, MANIFEST_IMAGE);
    assert_string_equal(m->config.digest, "sha256:" A64);
    assert_int_equal(m->config.size, 10);
    assert_int_equal(m->n_entries, 2);
    assert_string_equal(m->entries[1].digest, "sha256:" B64);
    assert_int_equal(manifest_total(m, 5), 55);
    assert_int_equal(n->kind, MANIFEST_IMAGE);
    assert_int_equal(o->kind, MANIFEST_IMAGE);
}

static void test_image_refused(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(LIMIT_MANIFEST * 2);

    refused("", NULL, "JSON");
    refused("[]", NULL, "not a JSON object");
    refused("{", NULL, "JSON");
    refused("{\"a\":1,\"a\":2}", NULL, "JSON");
    refused(GOOD "x", NULL, "JSON");
    refused("{}", NULL, "schemaVersion");
    refused("{\"schemaVersion\":\"2\"}", NULL, "schemaVersion");
    refused("{\"schemaVersion\":3}", NULL, "schemaVersion");
    refused("{\"schemaVersion\":1,\"fsLayers\":[]}", NULL, "schema 1");
    refused(GOOD, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1");
    refused(GOOD, OCI_I, "no list of manifests");
    refused("{\"schemaVersion\":2,\"mediaType\":\"" OCI_M "\"," CONFIG ",\"layers\":[]}", OCI_I,
            "the registry says");
    refused("{\"schemaVersion\":2,\"mediaType\":\"application/vnd.x+json\"}", NULL, "unsupported");
    refused("{\"schemaVersion\":2," CONFIG ",\"layers\":[],\"manifests\":[]}", OCI_M, "at once");
    refused("{\"schemaVersion\":2,\"layers\":[]}", NULL, "config");
    refused("{\"schemaVersion\":2," CONFIG "}", NULL, "no list of layers");
    refused("{\"schemaVersion\":2," CONFIG ",\"layers\":[1]}", NULL, "layer 0");
    refused("{\"schemaVersion\":2," CONFIG ",\"layers\":[{\"digest\":\"sha256:../../x\","
            "\"size\":1}]}",
            NULL, "no valid digest");
    refused("{\"schemaVersion\":2," CONFIG ",\"layers\":[{\"digest\":\"sha256:" B64 "\","
            "\"size\":-1}]}",
            NULL, "no valid size");
    refused("{\"schemaVersion\":2," CONFIG ",\"layers\":[{\"digest\":\"sha256:" B64 "\","
            "\"size\":1.5}]}",
            NULL, "no valid size");
    refused("{\"schemaVersion\":2," CONFIG ",\"layers\":[{\"digest\":\"sha256:" B64 "\","
            "\"size\":99999999999999999999}]}",
            NULL, "JSON");
    refused("{\"schemaVersion\":2," CONFIG ",\"layers\":[{\"mediaType\":\"application/wasm\","
            "\"digest\":\"sha256:" B64 "\",\"size\":1}]}",
            NULL, "media type");
    refused("{\"schemaVersion\":2,\"config\":{\"mediaType\":\"application/vnd.oci.empty.v1+json\","
            "\"digest\":\"sha256:" A64 "\",\"size\":2},\"layers\":[]}",
            NULL, "not a container image");
    refused("{\"schemaVersion\":2,\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+"
            "json\",\"digest\":\"sha256:" A64 "\",\"size\":900000000},\"layers\":[]}",
            NULL, "larger");

    buf_puts(&b, "{\"schemaVersion\":2," CONFIG ",\"layers\":[");
    for (int i = 0; i <= LIMIT_IMAGE_LAYERS; i++)
        buf_printf(&b, "%s" LAYER, i > 0 ? "," : "");
    buf_puts(&b, "]}");
    refused(buf_str(&b), NULL, "at most");
    buf_reset(&b);
    buf_puts(&b, "{\"schemaVersion\":2,\"x\":");
    for (int i = 0; i < 100000; i++)
        buf_putc(&b, '[');
    refused(buf_str(&b), NULL, "JSON");
    buf_reset(&b);
    while (b.len <= LIMIT_MANIFEST)
        buf_puts(&b, "                                ");
    refused(buf_str(&b), NULL, "larger");
    buf_clear(&b);
}

/* Two sizes that overflow when added must not come out small. */
static void test_total_saturates(void **state)
{
    (void)state;
    auto_manifest struct manifest *m = parse_ok(
        "{\"schemaVersion\":2," CONFIG ",\"layers\":["
        "{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:" B64
        "\",\"size\":9223372036854775807},"
        "{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:" B64
        "\",\"size\":9223372036854775807}]}",
        NULL);

    assert_true(manifest_total(m, 100) == UINT64_MAX);
}

static void entry(struct buf *b, const char *digit, const char *os, const char *arch,
                  const char *variant, const char *more)
{
    if (b->len == 0)
        buf_puts(b, "{\"schemaVersion\":2,\"mediaType\":\"" OCI_I "\",\"manifests\":[");
    else
        buf_putc(b, ',');
    buf_puts(b, "{\"mediaType\":\"" OCI_M "\",\"size\":7,\"digest\":\"sha256:");
    for (int i = 0; i < 64; i++)
        buf_puts(b, digit);
    buf_printf(b, "\",\"platform\":{\"os\":\"%s\",\"architecture\":\"%s\"", os, arch);
    if (variant != NULL)
        buf_printf(b, ",\"variant\":\"%s\"", variant);
    buf_printf(b, "}%s}", more);
}

static char chosen(struct buf *b, const char *arch, const char *variant)
{
    auto_err struct err err = ERR_INIT;
    auto_manifest struct manifest *m = NULL;
    const struct descriptor *d = NULL;
    struct platform want = {.os = "linux"};

    if (b->len > 0 && b->data[b->len - 1] != '!')
        buf_puts(b, "]}");
    m = parse_ok(buf_str(b), NULL);
    buf_clear(b);
    (void)snprintf(want.architecture, sizeof(want.architecture), "%s", arch);
    (void)snprintf(want.variant, sizeof(want.variant), "%s", variant);
    if (manifest_choose(m, &want, &d, &err) < 0) {
        assert_int_equal(err.code, ERR_NOT_FOUND);
        assert_non_null(strstr(err_msg(&err), arch));
        return '-';
    }
    return digest_hex(d->digest)[0];
}

static void test_platforms(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(MiB(1));

    entry(&b, "1", "linux", "arm64", "v8", "");
    entry(&b, "2", "linux", "amd64", NULL, "");
    entry(&b, "3", "windows", "amd64", NULL, "");
    assert_int_equal(chosen(&b, "amd64", ""), '2');

    entry(&b, "1", "windows", "amd64", NULL, "");
    assert_int_equal(chosen(&b, "amd64", ""), '-');

    entry(&b, "1", "unknown", "unknown", NULL, "");
    entry(&b, "2", "linux", "amd64", NULL,
          ",\"annotations\":{\"vnd.docker.reference.type\":\"attestation-manifest\"}");
    entry(&b, "3", "linux", "amd64", NULL, "");
    assert_int_equal(chosen(&b, "amd64", ""), '3');

    entry(&b, "1", "linux", "arm", "v5", "");
    entry(&b, "2", "linux", "arm", "v6", "");
    entry(&b, "3", "linux", "arm", "v8", "");
    assert_int_equal(chosen(&b, "arm", "v7"), '2');

    entry(&b, "1", "linux", "amd64", "v3", "");
    entry(&b, "2", "linux", "amd64", NULL, "");
    assert_int_equal(chosen(&b, "amd64", ""), '2');
    entry(&b, "1", "linux", "amd64", "v3", "");
    assert_int_equal(chosen(&b, "amd64", "v4"), '1');

    entry(&b, "1", "linux", "arm64", NULL, "");
    assert_int_equal(chosen(&b, "arm64", "v8"), '1');

    /* First of two equal ones. */
    entry(&b, "1", "linux", "amd64", NULL, "");
    entry(&b, "2", "linux", "amd64", NULL, "");
    assert_int_equal(chosen(&b, "amd64", ""), '1');

    entry(&b, "1", "", "", NULL, "");
    assert_int_equal(chosen(&b, "amd64", ""), '1');
    entry(&b, "1", "linux-with-a-very-long-name", "amd64", NULL, "");
    assert_int_equal(chosen(&b, "amd64", ""), '-');
}

static void test_index_refused(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(MiB(4));

    for (int i = 0; i <= LIMIT_INDEX_ENTRIES; i++)
        entry(&b, "1", "linux", "amd64", NULL, "");
    buf_puts(&b, "]}");
    refused(buf_str(&b), NULL, "at most");
    buf_clear(&b);
    refused("{\"schemaVersion\":2,\"manifests\":{}}", NULL, "no list of manifests");
    refused("{\"schemaVersion\":2,\"manifests\":[{}]}", NULL, "index entry 0");
}

#define ROOTFS                                                                                     \
    "\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:" A64 "\",\"sha256:" B64 "\"]}"

static void config_refused(const char *json, const char *needle)
{
    auto_err struct err err = ERR_INIT;
    struct image_config c = {0};
    auto_strv struct strv ids = {0};

    if (image_config_parse(json, strlen(json), &c, &ids, NULL, &err) == 0)
        fail_msg("accepted: %s", json);
    assert_int_equal(err.code, ERR_INVALID);
    assert_int_equal(ids.n, 0);
    if (strstr(err_msg(&err), needle) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", needle, err_msg(&err));
}

static void test_config(void **state)
{
    (void)state;
    static const char json[] =
        "{\"os\":\"linux\",\"architecture\":\"arm64\",\"variant\":\"v8\"," ROOTFS ","
        "\"config\":{\"User\":\"1000:1000\",\"Env\":[\"A=b\",\"C=\"],\"Entrypoint\":[\"/x\"],"
        "\"Cmd\":null,\"WorkingDir\":\"/w\",\"StopSignal\":\"SIGTERM\",\"Volumes\":{\"/v\":{}},"
        "\"Labels\":{\"k\":\"v\"},\"Healthcheck\":{},\"OnBuild\":null}}";
    auto_err struct err err = ERR_INIT;
    struct image_config c = {0}, copy = {0};
    auto_strv struct strv ids = {0}, ids2 = {0};
    struct platform p;

    if (image_config_parse(json, strlen(json), &c, &ids, &p, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(ids.n, 2);
    assert_string_equal(ids.v[1], "sha256:" B64);
    assert_string_equal(p.architecture, "arm64");
    assert_string_equal(p.variant, "v8");
    image_config_copy(&copy, &c);
    image_config_clear(&c);
    assert_string_equal(copy.user, "1000:1000");
    assert_int_equal(copy.env.n, 2);
    assert_int_equal(copy.cmd.n, 0);
    assert_string_equal(copy.entrypoint.v[0], "/x");
    assert_string_equal(copy.working_dir, "/w");
    assert_string_equal(copy.stop_signal, "SIGTERM");
    assert_string_equal(copy.volumes.v[0], "/v");
    assert_string_equal(copy.labels.v[1], "v");
    image_config_clear(&copy);

    assert_int_equal(
        image_config_parse("{" ROOTFS "}", strlen("{" ROOTFS "}"), &c, &ids2, NULL, &err), 0);
    assert_string_equal(c.user, "");
    assert_string_equal(c.working_dir, "");
    image_config_clear(&c);
}

static void test_config_refused(void **state)
{
    (void)state;
    config_refused("{}", "rootfs");
    config_refused("{\"rootfs\":{\"type\":\"x\",\"diff_ids\":[]}}", "layers");
    config_refused("{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"x\"]}}", "diff_id 0");
    config_refused("{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha512:" A64 A64 "\"]}}",
                   "diff_id 0");
    config_refused("{" ROOTFS ",\"config\":[]}", "not an object");
    config_refused("{" ROOTFS ",\"config\":{\"Env\":\"A=b\"}}", "Env");
    config_refused("{" ROOTFS ",\"config\":{\"Env\":[1]}}", "Env");
    config_refused("{" ROOTFS ",\"config\":{\"User\":0}}", "User");
    config_refused("{" ROOTFS ",\"config\":{\"Volumes\":[]}}", "Volumes");
    config_refused("{" ROOTFS ",\"config\":{\"Labels\":{\"a\":1}}}", "Labels");
    config_refused("{" ROOTFS ",\"config\":{\"User\":\"a\\u0000b\"}}", "JSON");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image),           cmocka_unit_test(test_image_refused),
        cmocka_unit_test(test_total_saturates), cmocka_unit_test(test_platforms),
        cmocka_unit_test(test_index_refused),   cmocka_unit_test(test_config),
        cmocka_unit_test(test_config_refused),
    };

    return cmocka_run_group_tests_name("manifest", tests, NULL, NULL);
}
