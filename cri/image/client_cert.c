#include "cri/image/client_cert.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"

struct pair {
    X509 *cert;
    STACK_OF(X509) * chain;
    EVP_PKEY *key;
};

struct pairs {
    struct pair *v;
    size_t n;
};

static int ctx_slot = -1;
static pthread_once_t slot_once = PTHREAD_ONCE_INIT;

static void pairs_free(struct pairs *p)
{
    if (p == NULL)
        return;
    for (size_t i = 0; i < p->n; i++) {
        X509_free(p->v[i].cert);
        sk_X509_pop_free(p->v[i].chain, X509_free);
        EVP_PKEY_free(p->v[i].key);
    }
    free(p->v);
    free(p);
}

static void on_ctx_free(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx, long argl, void *argp)
{
    (void)parent;
    (void)ad;
    (void)idx;
    (void)argl;
    (void)argp;
    pairs_free(ptr);
}

static void make_slot(void)
{
    ctx_slot = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, on_ctx_free);
}

/* A key that wants a password is one that we cannot use; nobody is there to be asked. */
static int no_password(char *buf, int size, int rwflag, void *arg)
{
    (void)buf;
    (void)size;
    (void)rwflag;
    (void)arg;
    return -1;
}

static int load_certs(struct pair *p, const char *file, struct err *err)
{
    size_t len = 0;
    auto_free char *text = fs_read(file, MiB(1), &len, err);
    if (text == NULL)
        return -1;
    BIO *bio = BIO_new_mem_buf(text, (int)len);
    X509 *more;

    p->cert = bio != NULL ? PEM_read_bio_X509(bio, NULL, no_password, NULL) : NULL;
    p->chain = sk_X509_new_null();
    while (p->cert != NULL && p->chain != NULL &&
           (more = PEM_read_bio_X509(bio, NULL, no_password, NULL)) != NULL)
        if (sk_X509_push(p->chain, more) == 0)
            X509_free(more);
    ERR_clear_error(); /* the end of the file counts as one */
    BIO_free(bio);
    if (p->cert == NULL || p->chain == NULL)
        return err_set(err, ERR_INVALID, "%s: no certificate in PEM form", file);
    return 0;
}

static int load_key(struct pair *p, const char *file, struct err *err)
{
    size_t len = 0;
    auto_free char *text = fs_read(file, MiB(1), &len, err);
    if (text == NULL)
        return -1;
    BIO *bio = BIO_new_mem_buf(text, (int)len);

    p->key = bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;
    BIO_free(bio);
    explicit_bzero(text, len);
    ERR_clear_error();
    if (p->key == NULL)
        return err_set(err, ERR_INVALID, "%s: no key in PEM form without a password", file);
    if (X509_check_private_key(p->cert, p->key) != 1) {
        ERR_clear_error();
        return err_set(err, ERR_INVALID, "%s: not the key of its certificate", file);
    }
    return 0;
}

/* Whether the server's list has the issuer of a certificate of the pair's chain. */
static bool issued_by_one_of(const struct pair *p, const STACK_OF(X509_NAME) * names)
{
    for (int c = -1; c < sk_X509_num(p->chain); c++) {
        const X509 *cert = c < 0 ? p->cert : sk_X509_value(p->chain, c);
        for (int i = 0; i < sk_X509_NAME_num(names); i++)
            if (X509_NAME_cmp(X509_get_issuer_name(cert), sk_X509_NAME_value(names, i)) == 0)
                return true;
    }
    return false;
}

/* Called when the server has asked for a certificate. 1: go on, 0: fail. */
static int choose(SSL *ssl, void *arg)
{
    const struct pairs *p = arg;
    const STACK_OF(X509_NAME) *names = SSL_get0_peer_CA_list(ssl);
    const struct pair *best = &p->v[0];

    for (size_t i = 0; i < p->n; i++)
        if (issued_by_one_of(&p->v[i], names)) {
            best = &p->v[i];
            break;
        }
    return SSL_use_cert_and_key(ssl, best->cert, best->key, best->chain, 1) == 1;
}

int client_certs_use(void *ssl_ctx, const struct strv *files, struct err *err)
{
    struct pairs *p = xcalloc(1, sizeof(*p));

    (void)pthread_once(&slot_once, make_slot);
    p->v = xcalloc(files->n / 2 + 1, sizeof(*p->v));
    for (size_t i = 0; i + 1 < files->n; i += 2) {
        struct pair *fresh = &p->v[p->n++];
        if (load_certs(fresh, files->v[i], err) < 0 || load_key(fresh, files->v[i + 1], err) < 0) {
            pairs_free(p);
            return -1;
        }
    }
    if (ctx_slot < 0 || SSL_CTX_set_ex_data(ssl_ctx, ctx_slot, p) != 1) {
        pairs_free(p);
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    }
    SSL_CTX_set_cert_cb(ssl_ctx, choose, p);
    return 0;
}
