/* Needs root: makes real namespaces. */
#include "fixture.h"

#include "netplugin/netns.h"
#include "netplugin/netns_note.h"

static bool is_mine(void *arg, const char *id)
{
    (void)arg;
    return strcmp(id, "mine") == 0;
}

static char *make(const char *dir, const char *id, struct err *err)
{
    char name[13 + 12 + 1] = "cni-test-";
    auto_free char *path = NULL;
    char *made = NULL;

    fs_random_hex(name + strlen(name), 12);
    path = fs_format("/run/netns/%s", name);
    assert_int_equal(netns_note_write(dir, id, path, err), 0);
    assert_int_equal(netns_create(name, &made, err), 0);
    assert_string_equal(made, path);
    return made;
}

static void test_those_of_nobody_go(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    char base[] = "/tmp/aspis-note-XXXXXX";

    if (geteuid() != 0)
        skip();
    assert_non_null(mkdtemp(base));
    auto_free char *dir = fs_format("%s/netns", base);
    auto_free char *note = fs_format("%s/netns/mine", base);
    auto_free char *other = fs_format("%s/netns/lost", base);

    assert_int_equal(netns_notes_collect(dir, is_mine, NULL, &err), 0); /* no directory yet */
    auto_free char *mine = make(dir, "mine", &err);
    auto_free char *lost = make(dir, "lost", &err);
    assert_int_equal(netns_notes_collect(dir, is_mine, NULL, &err), 0);
    assert_true(fs_exists(mine) && fs_exists(note));
    assert_true(!fs_exists(lost) && !fs_exists(other));

    assert_int_equal(netns_remove(mine, &err), 0);
    netns_note_drop(dir, "mine");
    assert_false(fs_exists(note));
    netns_note_drop(dir, "mine");
    assert_int_equal(fs_rm_rf(base, &err), 0);
}

static void test_what_is_not_ours_stays(void **state)
{
    (void)state;
    static const char *const paths[] = {"/run/netns/blue", "/run/netns/cni-x/../../../victim", ""};
    auto_err struct err err = ERR_INIT;
    char base[] = "/tmp/aspis-note-XXXXXX";

    assert_non_null(mkdtemp(base));
    auto_free char *victim = fs_format("%s/cni-victim", base);
    auto_free char *note = fs_format("%s/netns/x", base);
    auto_free char *dir = fs_format("%s/netns", base);

    assert_int_equal(fs_write_atomic(victim, "", 0, 0600, false, &err), 0);
    for (size_t i = 0; i <= ARRAY_LEN(paths); i++) {
        const char *path = i < ARRAY_LEN(paths) ? paths[i] : victim;
        assert_int_equal(netns_note_write(dir, "x", path, &err), 0);
        assert_int_equal(netns_notes_collect(dir, is_mine, NULL, &err), 0);
        assert_false(fs_exists(note));
        assert_true(fs_exists(victim));
    }
    assert_int_equal(fs_rm_rf(base, &err), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_those_of_nobody_go),
        cmocka_unit_test(test_what_is_not_ours_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
