/* The ring against a plain array: every operation, wrapped in every way, at its ceiling. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/ring.h"

#define MAX 9000

static void check(const struct ring *r, const uint8_t *want, size_t len)
{
    struct iovec iov[2];

    assert_int_equal(r->len, len);
    for (size_t skip = 0; skip <= len; skip += len / 3 + 1) {
        size_t n = ring_peek(r, skip, SIZE_MAX, iov);

        assert_int_equal(n, len - skip);
        assert_int_equal(iov[0].iov_len + iov[1].iov_len, n);
        if (n > 0)
            assert_memory_equal(iov[0].iov_base, want + skip, iov[0].iov_len);
        if (iov[1].iov_len > 0)
            assert_memory_equal(iov[1].iov_base, want + skip + iov[0].iov_len, iov[1].iov_len);
    }
}

static void random_operations(void **state)
{
    (void)state;
    struct ring r = RING_INIT(MAX);
    uint8_t model[MAX];
    size_t len = 0;
    unsigned seed = 7;
    uint8_t next = 0;

    for (int i = 0; i < 20000; i++) {
        size_t n = (size_t)rand_r(&seed) % (i % 100 == 0 ? 9500 : 700);

        if (rand_r(&seed) % 2 == 0) {
            uint8_t data[9500];

            for (size_t k = 0; k < n; k++)
                data[k] = next++;
            int ret = ring_append(&r, data, n);
            assert_int_equal(ret, len + n <= MAX ? 0 : -1);
            if (ret == 0) {
                memcpy(model + len, data, n);
                len += n;
            }
        } else {
            ring_consume(&r, n);
            if (n > len)
                n = len;
            memmove(model, model + n, len - n);
            len -= n;
        }
        check(&r, model, len);
        assert_true(r.cap <= MAX);
    }
    ring_clear(&r);
}

static void room_is_bounded_and_memory_returns(void **state)
{
    (void)state;
    struct ring r = RING_INIT(100000);
    struct iovec iov[2];

    assert_int_equal(ring_room(&r, 10, iov), 10);
    assert_true(r.cap <= 4096);
    assert_int_equal(ring_room(&r, 1000000, iov), 100000);
    memset(iov[0].iov_base, 'x', iov[0].iov_len);
    ring_commit(&r, 100000);
    assert_int_equal(ring_room(&r, 1, iov), 0);
    assert_int_equal(ring_append(&r, "y", 1), -1);
    ring_consume(&r, 99999);
    assert_int_equal(r.cap, 100000);
    ring_consume(&r, 1);
    assert_int_equal(r.cap, 0); /* an idle stream costs nothing */
    assert_int_equal(ring_peek(&r, 0, 1, iov), 0);
    ring_clear(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_operations),
        cmocka_unit_test(room_is_bounded_and_memory_returns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
