/* For test_clocks.py: answers each datagram with the time, having set the clock as it says. */
#include <arpa/inet.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timex.h>
#include <time.h>

struct order {
    int64_t add_ns; /* to the clock */
    int64_t ppm;    /* and from now on it runs so much too fast; INT64_MIN: as it does */
};

static int obey(const struct order *o)
{
    struct timex t = {
        .modes = ADJ_SETOFFSET,
        .time = {.tv_sec = o->add_ns / 1000 / 1000000, .tv_usec = o->add_ns / 1000 % 1000000}};
    if (t.time.tv_usec < 0) {
        t.time.tv_sec--;
        t.time.tv_usec += 1000000;
    }
    if (o->add_ns != 0 && adjtimex(&t) < 0)
        return -1;
    t = (struct timex){.modes = ADJ_FREQUENCY, .freq = (long)o->ppm << 16};
    return o->ppm != INT64_MIN && adjtimex(&t) < 0 ? -1 : 0;
}

int main(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(9000)};
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || bind(s, (struct sockaddr *)&here, sizeof(here)) < 0)
        return 1;
    for (;;) {
        struct sockaddr_in from;
        socklen_t len = sizeof(from);
        struct order o;
        struct timespec now;
        if (recvfrom(s, &o, sizeof(o), 0, (struct sockaddr *)&from, &len) != sizeof(o))
            continue;
        int64_t answer = obey(&o);
        clock_gettime(CLOCK_REALTIME, &now);
        if (answer == 0)
            answer = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
        (void)sendto(s, &answer, sizeof(answer), 0, (struct sockaddr *)&from, len);
    }
}
