/* Asks the resolver library it is linked with for each argument, and prints what it says: the name, then its addresses
 * in order, or the error. Compiled once with glibc and once with musl, so that both are tried as programs use them. */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MOST 256

static int compare(const void *a, const void *b) { return strcmp(a, b); }

int main(int count, char **arguments)
{
    for (int i = 1; i < count; i++) {
        struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
        int error = getaddrinfo(arguments[i], NULL, &hints, &found);
        printf("%s", arguments[i]);
        if (error) {
            printf(" %s\n", error == EAI_NONAME ? "none" : gai_strerror(error));
            fflush(stdout);
            continue;
        }
        static char texts[MOST][NI_MAXHOST];
        int texts_count = 0;
        for (struct addrinfo *one = found; one && texts_count < MOST; one = one->ai_next)
            if (!getnameinfo(one->ai_addr, one->ai_addrlen, texts[texts_count], NI_MAXHOST, NULL, 0, NI_NUMERICHOST))
                texts_count++;
        freeaddrinfo(found);
        qsort(texts, texts_count, NI_MAXHOST, compare);
        for (int j = 0; j < texts_count; j++)
            printf(" %s", texts[j]);
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
