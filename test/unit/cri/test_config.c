/* cri/config: the sample is the defaults, every key is read, and mistakes are named with file and
 * line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/fs.h"
#include "base/limits.h"
#include "cri/config.h"

static void test_sample(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_config struct config *sample = config_load(SAMPLE, &err);
    if (sample == NULL)
        fail_msg("%s", err_msg(&err));
    auto_config struct config *defaults = config_parse("", 0, "empty", &err);
    assert_non_null(defaults);
    auto_free char *a = config_text(sample);
    auto_free char *b = config_text(defaults);
    assert_string_equal(a, b);
    assert_string_equal(sample->file, SAMPLE);

    /* Every key stands in the sample: each line of the text is found as "\nkey = ". */
    size_t len;
    auto_free char *text = fs_read(SAMPLE, MiB(1), &len, &err);
    char *save = NULL;
    for (char *line = strtok_r(a, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        char *key = strchr(line, '.') + 1;
        key[strcspn(key, " ")] = '\0';
        auto_free char *needle = fs_format("\n%s = ", key);
        if (strstr(text, needle) == NULL)
            fail_msg("%s is not in the sample", key);
    }
}

static void test_values(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    const char text[] = "[machine]\n"
                        "accelerator = \"tcg\"\n"
                        "transport = \"virtio-serial\"\n"
                        "base_memory_mib = 256\n"
                        "boot_timeout_seconds = 7\n"
                        "max_vcpus = 3\n"
                        "[daemon]\n"
                        "socket = \"/x/y.sock\"\n"
                        "state_root = \"/s\"\n"
                        "log_level = \"debug\"\n"
                        "[network]\n"
                        "bin_dirs = [\"/a\", \"/b:c\"]\n";
    auto_config struct config *c = config_parse(text, strlen(text), "f", &err);
    if (c == NULL)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(c->machine.accel, ACCEL_TCG);
    assert_int_equal(c->machine.transport, TRANSPORT_VIRTIO_SERIAL);
    assert_int_equal(c->machine.base_memory_bytes, MiB(256));
    assert_int_equal(c->machine.boot_timeout_ns, 7000000000);
    assert_int_equal(c->machine.max_vcpus, 3);
    assert_string_equal(c->socket, "/x/y.sock");
    assert_string_equal(c->machine.state_root, "/s");
    assert_string_equal(c->machine.run_root, "/run/aspis");
    assert_string_equal(c->images.jail_helper, c->machine.jail_helper);
    assert_int_equal(c->log_level, LOG_LEVEL_DEBUG);
    assert_string_equal(c->cni.bin_dirs[0], "/a");
    assert_string_equal(c->cni.bin_dirs[1], "/b:c");
    assert_null(c->cni.bin_dirs[2]);
}

static void expect(const char *text, const char *message)
{
    auto_err struct err err = ERR_INIT;
    auto_config struct config *c = config_parse(text, strlen(text), "f.toml", &err);
    assert_null(c);
    assert_string_equal(err_msg(&err), message);
    assert_int_equal(err.code, ERR_INVALID);
}

static void test_mistakes(void **state)
{
    (void)state;
    expect("x = 1\n", "f.toml: line 1: unknown key \"x\" outside any section");
    expect("\n[daemons]\nx = 1\n", "f.toml: line 2: unknown section [daemons]");
    expect("[daemon]\n\nsocketx = \"/a\"\n", "f.toml: line 3: unknown key \"socketx\" in [daemon]");
    expect("[daemon]\nqemu = \"/a\"\n", "f.toml: line 2: unknown key \"qemu\" in [daemon]");
    expect("[daemon.more]\nx = 1\n", "f.toml: line 1: unknown section [daemon...]");
    expect("[daemon]\nsocket = 3\n",
           "f.toml: line 2: daemon.socket must be a string, not an integer");
    expect("[daemon]\nsocket = \"a\"\n", "f.toml: line 2: daemon.socket must be an absolute path");
    expect("[daemon]\nlog_level = \"loud\"\n", "f.toml: line 2: daemon.log_level cannot be "
                                               "\"loud\", but one of: debug info warn error");
    expect("[machine]\nmax_vcpus = -1\n",
           "f.toml: line 2: machine.max_vcpus must be from 0 to 1024");
    expect("[machine]\nuid_base = 0\n",
           "f.toml: line 2: machine.uid_base must be from 1000 to 4000000000");
    expect("[network]\nbin_dirs = []\n", "f.toml: network.bin_dirs is empty");
    expect("[network]\nbin_dirs = [\"a\"]\n",
           "f.toml: line 2: network.bin_dirs must be an absolute path");
    expect("[images]\nunpack_uid = 1900000000\n",
           "f.toml: images.unpack_uid lies in the range of the machines' uids");
    expect("[machine]\nmax_memory_mib = 100\n",
           "f.toml: machine.max_memory_mib is less than base_memory_mib");
}

static void test_files(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_null(config_load("/nonexistent/config.toml", &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err_msg(&err), "/nonexistent/config.toml"));
    assert_null(config_load("/dev/zero", &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
