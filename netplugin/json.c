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
