#include "netplugin/json.h"

json_t *json_parse(const char *text, size_t len, size_t max, struct err *err)
{
    json_error_t je;
    json_t *j;

    if (len > max) {
        err_set(err, ERR_EXHAUSTED, "JSON text longer than %zu bytes", max);
        return NULL;
    }
    j = json_loadb(text, len, 0, &je);
    if (j == NULL) {
        err_set(err, ERR_INVALID, "not JSON: %s at line %d", je.text, je.line);
        return NULL;
    }
    if (!json_is_object(j)) {
        json_decref(j);
        err_set(err, ERR_INVALID, "not a JSON object");
        return NULL;
    }
    return j;
}

int json_check_array(const json_t *v, const char *key, size_t max, struct err *err)
{
    if (!json_is_array(v))
        return err_set(err, ERR_INVALID, "%s: not an array", key);
    if (json_array_size(v) > max)
        return err_set(err, ERR_EXHAUSTED, "%s: %zu entries, at most %zu", key, json_array_size(v),
                       max);
    return 0;
}

int json_check_u32(const json_t *v, const char *key, uint32_t *out, struct err *err)
{
    json_int_t n = json_integer_value(v);

    if (!json_is_integer(v) || n < 0 || n > UINT32_MAX)
        return err_set(err, ERR_INVALID, "%s: not a 32-bit number", key);
    *out = (uint32_t)n;
    return 0;
}
