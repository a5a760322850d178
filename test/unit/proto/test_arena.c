/* proto/arena: alignment, zeroing, the cap, and that it stops a small message from eating memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "proto/arena.h"
#include "proto/ttrpc.pb-c.h"

static void test_blocks(void **state)
{
    (void)state;
    auto_arena struct arena *a = arena_new(MiB(8));
    unsigned char *blocks[300];
    size_t sizes[300];
    for (size_t i = 0; i < ARRAY_LEN(blocks); i++) {
        sizes[i] = (i * 37) % 5000 + (i % 50 == 0 ? 70000 : 0);
        blocks[i] = arena_alloc(a, sizes[i]);
        assert_non_null(blocks[i]);
        assert_int_equal((uintptr_t)blocks[i] % 16, 0);
        for (size_t k = 0; k < sizes[i]; k++)
            assert_int_equal(blocks[i][k], 0);
        memset(blocks[i], (int)(i % 251) + 1, sizes[i]);
    }
    for (size_t i = 0; i < ARRAY_LEN(blocks); i++)
        for (size_t k = 0; k < sizes[i]; k++)
            assert_int_equal(blocks[i][k], i % 251 + 1);
    assert_false(arena_exhausted(a));
}

static void test_strings(void **state)
{
    (void)state;
    auto_arena struct arena *a = arena_new(KiB(64));
    assert_string_equal(arena_strdup(a, "pod"), "pod");
    assert_null(arena_strdup(a, NULL));
    assert_string_equal(arena_strndup(a, "container", 3), "con");
    assert_string_equal(arena_strndup(a, "c", 30), "c");
    assert_string_equal(arena_printf(a, "%s-%d", "x", 42), "x-42");
    assert_memory_equal(arena_memdup(a, "a\0b", 3), "a\0b", 3);
    assert_non_null(arena_memdup(a, NULL, 0));
    assert_int_equal(arena_used(a) % 16, 0);
}

static void test_cap(void **state)
{
    (void)state;
    auto_arena struct arena *a = arena_new(1024);
    assert_non_null(arena_alloc(a, 1000));
    assert_non_null(arena_alloc(a, 1));
    assert_false(arena_exhausted(a));
    assert_null(arena_alloc(a, 1));
    assert_true(arena_exhausted(a));
    assert_int_equal(arena_used(a), 1024);

    auto_arena struct arena *b = arena_new(1024);
    assert_null(arena_alloc(b, SIZE_MAX));
    assert_true(arena_exhausted(b));
    assert_null(arena_alloc(b, 1)); /* stays so, since the caller may have missed the first */
    assert_null(arena_strdup(b, "x"));
    assert_null(arena_printf(b, "x"));

    auto_arena struct arena *c = arena_new(1024);
    assert_null(arena_alloc(c, SIZE_MAX - 8));
    arena_free(NULL);
}

/* An empty KeyValue costs 2 bytes on the wire and some 60 in memory. */
static void test_amplification(void **state)
{
    (void)state;
    const size_t n = 200000;
    uint8_t *wire = malloc(n * 2);
    assert_non_null(wire);
    for (size_t i = 0; i < n; i++) {
        wire[2 * i] = 5 << 3 | 2;
        wire[2 * i + 1] = 0;
    }
    auto_arena struct arena *small = arena_new(MiB(1));
    assert_null(aspis__ttrpc__request__unpack(arena_allocator(small), n * 2, wire));
    assert_true(arena_exhausted(small));
    assert_true(arena_used(small) <= MiB(1));

    auto_arena struct arena *large = arena_new(MiB(64));
    const Aspis__Ttrpc__Request *r =
        aspis__ttrpc__request__unpack(arena_allocator(large), n * 2, wire);
    assert_non_null(r);
    assert_int_equal(r->n_metadata, n);
    assert_string_equal(r->metadata[n - 1]->key, "");
    free(wire);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_cap),
        cmocka_unit_test(test_amplification),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
