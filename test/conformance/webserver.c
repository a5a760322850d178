/* Stands in for nginx and httpd in the images that critest pulls; static, so that it runs on an
 * image of anything.
 *
 * The name it is started by says what critest expects of it: `nginx` writes /var/run/nginx.pid and
 * shows itself as "master process", `httpd` says its name on stdout; each request gets 200 and a
 * line. Usage: NAME PORT. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void serve(int fd)
{
    char request[4096];
    size_t have = 0;
    while (have < sizeof request - 1) {
        ssize_t n = read(fd, request + have, sizeof request - 1 - have);
        if (n <= 0) {
            return;
        }
        have += (size_t)n;
        request[have] = '\0';
        if (strstr(request, "\r\n\r\n") != NULL) {
            break;
        }
    }
    static const char REPLY[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n"
        "Connection: close\r\n\r\nWelcome\n";
    if (write(fd, REPLY, sizeof REPLY - 1) < 0) {
        return; /* the client has gone */
    }
}

static int listener(int port)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int off = 0;
    int on = 1;
    struct sockaddr_in6 a = {
        .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT, .sin6_port = htons((uint16_t)port)};
    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 64) < 0) {
        perror("webserver");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv)
{
    const char *base = strrchr(argv[0], '/');
    int nginx = strcmp(base != NULL ? base + 1 : argv[0], "nginx") == 0;
    if (argc < 2) {
        return 2;
    }
    /* "nginx: master process" must be in argv: started once more with that as its name */
    if (nginx && argc == 2) {
        execl("/proc/self/exe", "nginx: master process nginx", argv[1], "master", (char *)NULL);
    }
    signal(SIGPIPE, SIG_IGN);
    int fd = listener(atoi(argv[1]));
    if (argc > 2) {
        FILE *f = fopen("/var/run/nginx.pid", "we");
        if (f != NULL) {
            fprintf(f, "%d\n", (int)getpid());
            fclose(f);
        }
    } else {
        puts("httpd: resuming normal operations");
        fflush(stdout);
    }
    /* PID 1 of a container gets no default action */
    struct sigaction stop = {.sa_handler = _exit};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGQUIT, &stop, NULL);
    for (;;) {
        int c = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (c >= 0) {
            serve(c);
            shutdown(c, SHUT_WR);
            close(c);
        }
    }
}
