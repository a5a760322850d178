/*
 * container_end - how containers end: exit events, completion of logs, lost machines, failed
 * starts.
 *
 * See container_ops.h for the order in which an end becomes visible. The finishing itself runs on
 * the runtime's worker loop, since it writes records.
 */
#ifndef ASPIS_CRI_CONTAINER_END_H
#define ASPIS_CRI_CONTAINER_END_H

#include "cri/model.h"

/* From the log; on the io loop. */
void container_log_is_done(struct container *c);
/* ListState shows the end, whose event may have come before, or come yet, or never: a start that
 * failed has none, and of many the agent forgets the oldest. */
void container_end_listed(struct container *c, const Aspis__Agent__V1__Exit *e);
/* StartContainer failed for good: EXITED, 128, StartError. */
void container_finish_start_error(struct container *c, const char *message);
/* No end is put together any more: c is being removed, or the daemon stops and the next one shall
 * hear of it again. */
void container_end_forget(struct container *c);
/* Its machine, or the guest's memory of it, is gone: EXITED, 255, Unknown. */
void container_finish_lost(struct container *c, const char *message);

#endif
