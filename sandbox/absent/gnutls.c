/*
 * libgnutls: TLS for sockets that are reached over a network, and QEMU's random numbers (vmgenid,
 * the guest's RDRAND), which are the kernel's here. Behind it are libp11-kit, libunistring,
 * libidn2, libtasn1.
 */
#include <errno.h>
#include <stddef.h>
#include <sys/random.h>

#include "sandbox/absent/absent.h"

EXPORT int gnutls_global_init(void);
EXPORT int gnutls_rnd(int level, void *data, size_t len);
EXPORT const char *gnutls_strerror(int error);

int gnutls_global_init(void)
{
    return 0;
}

/* At any level: numbers fit for keys. 0, or -1, which QEMU takes for an error. */
int gnutls_rnd(int level, void *data, size_t len)
{
    (void)level;
    char *at = data;
    while (len > 0) {
        ssize_t n = getrandom(at, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

const char *gnutls_strerror(int error)
{
    (void)error;
    return "no random numbers";
}

ABSENT(gnutls_anon_allocate_client_credentials)
ABSENT(gnutls_anon_allocate_server_credentials)
ABSENT(gnutls_anon_free_client_credentials)
ABSENT(gnutls_anon_free_server_credentials)
ABSENT(gnutls_anon_set_server_dh_params)
ABSENT(gnutls_certificate_allocate_credentials)
ABSENT(gnutls_certificate_free_credentials)
ABSENT(gnutls_certificate_get_peers)
ABSENT(gnutls_certificate_server_set_request)
ABSENT(gnutls_certificate_set_dh_params)
ABSENT(gnutls_certificate_set_x509_crl_file)
ABSENT(gnutls_certificate_set_x509_key_file2)
ABSENT(gnutls_certificate_set_x509_trust_file)
ABSENT(gnutls_certificate_verify_peers2)
ABSENT(gnutls_cipher_get)
ABSENT(gnutls_cipher_get_key_size)
ABSENT(gnutls_cipher_suite_info)
ABSENT(gnutls_credentials_set)
ABSENT(gnutls_deinit)
ABSENT(gnutls_dh_params_deinit)
ABSENT(gnutls_dh_params_generate2)
ABSENT(gnutls_dh_params_import_pkcs3)
ABSENT(gnutls_dh_params_init)
ABSENT(gnutls_handshake)
ABSENT(gnutls_init)
ABSENT(gnutls_priority_deinit)
ABSENT(gnutls_priority_get_cipher_suite_index)
ABSENT(gnutls_priority_init)
ABSENT(gnutls_priority_set_direct)
ABSENT(gnutls_protocol_get_name)
ABSENT(gnutls_psk_allocate_client_credentials)
ABSENT(gnutls_psk_allocate_server_credentials)
ABSENT(gnutls_psk_free_client_credentials)
ABSENT(gnutls_psk_free_server_credentials)
ABSENT(gnutls_psk_set_client_credentials)
ABSENT(gnutls_psk_set_server_credentials_file)
ABSENT(gnutls_psk_set_server_dh_params)
ABSENT(gnutls_record_get_direction)
ABSENT(gnutls_record_recv)
ABSENT(gnutls_record_send)
ABSENT(gnutls_transport_set_ptr)
ABSENT(gnutls_transport_set_pull_function)
ABSENT(gnutls_transport_set_push_function)
ABSENT(gnutls_x509_crt_check_hostname)
ABSENT(gnutls_x509_crt_deinit)
ABSENT(gnutls_x509_crt_get_activation_time)
ABSENT(gnutls_x509_crt_get_basic_constraints)
ABSENT(gnutls_x509_crt_get_dn)
ABSENT(gnutls_x509_crt_get_expiration_time)
ABSENT(gnutls_x509_crt_get_key_purpose_oid)
ABSENT(gnutls_x509_crt_get_key_usage)
ABSENT(gnutls_x509_crt_import)
ABSENT(gnutls_x509_crt_init)
ABSENT(gnutls_x509_crt_list_import)
ABSENT(gnutls_x509_crt_list_verify)
