/*
 * huge_text - the agent's own code and constants in one huge page.
 *
 * Every operation on a container forks the agent two or three times, and what a child inherits of a
 * file's mapping is nothing: each child takes some forty page faults for the code that it runs, and
 * sets up and tears down twenty times as many page table entries. A huge page of memory is
 * inherited as one entry. Under emulation that is a tenth of what an exec costs.
 *
 * For PID 1 of a guest: it costs 2 MiB once, in the template's memory, which clones share.
 */
#ifndef ASPIS_AGENT_HUGE_TEXT_H
#define ASPIS_AGENT_HUGE_TEXT_H

/* Does nothing where the program is not laid out for it (agent/meson.build) or the kernel has no
 * such pages. While no other thread runs. */
void huge_text(void);

#endif
