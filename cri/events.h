/*
 * events - GetContainerEvents: tells subscribers what happens to sandboxes and containers.
 *
 * An event is made in the moment the model changes, under the runtime's lock, so that events come
 * in the order of the changes and the statuses in them are those of that moment. It is packed once
 * for all subscribers, and not at all while there is none. Each has a queue of LIMIT_EVENT_QUEUE
 * bytes; one that falls behind loses its stream with an error, since a stream with gaps would be
 * believed.
 */
#ifndef ASPIS_CRI_EVENTS_H
#define ASPIS_CRI_EVENTS_H

#include "cri/model.h"

struct events *events_new(void);
/* After the last call ended. */
void events_free(struct events *e);

/* The runtime's lock is held. c NULL: the sandbox itself. Statuses are those of the sandbox and of
 * all its containers. */
void events_sandbox(struct sandbox *s, Runtime__V1__ContainerEventType type);
void events_container(struct container *c, Runtime__V1__ContainerEventType type);

#endif
