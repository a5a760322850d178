/* Stands in for critest's nonewprivs image: installed setuid root, says whose rights it got. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    printf("Effective uid: %d\n", (int)geteuid());
    return 0;
}
