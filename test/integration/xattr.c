/* Extended attributes from inside a container: list FILE, get FILE NAME, set FILE NAME VALUE,
 * remove FILE NAME. */
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

int main(int argc, char **argv)
{
    char data[65536];
    const char *verb = argc > 2 ? argv[1] : "";
    ssize_t n = -1;

    if (argc == 3 && strcmp(verb, "list") == 0) {
        n = listxattr(argv[2], data, sizeof(data));
        for (ssize_t at = 0; at < n; at += (ssize_t)strlen(data + at) + 1)
            (void)puts(data + at);
    } else if (argc == 4 && strcmp(verb, "get") == 0) {
        n = getxattr(argv[2], argv[3], data, sizeof(data));
        if (n >= 0)
            (void)printf("%.*s\n", (int)n, data);
    } else if (argc == 5 && strcmp(verb, "set") == 0) {
        n = setxattr(argv[2], argv[3], argv[4], strlen(argv[4]), 0);
    } else if (argc == 4 && strcmp(verb, "remove") == 0) {
        n = removexattr(argv[2], argv[3]);
    } else {
        (void)fputs("usage\n", stderr);
        return 2;
    }
    if (n < 0)
        perror(argv[1]);
    return n < 0;
}
