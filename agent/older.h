/*
 * older - an agent that behaves like one of an earlier release, for tests only.
 *
 * The executable aspis-agent-old is compiled with -DAGENT_MINOR=1: it says so in Hello, has none of
 * the calls that came later and does not see the fields that did.
 */
#ifndef ASPIS_AGENT_OLDER_H
#define ASPIS_AGENT_OLDER_H

#include "proto/version.h"

#ifndef AGENT_MINOR
#define AGENT_MINOR PROTOCOL_MINOR
#endif

#endif
