/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Every map of the datapath. All are pinned by name and outlive the agent. */
#ifndef MAPS_H
#define MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"

const volatile struct settings config;

/* The rows. Index: port id. Written by Go only, see struct port_slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct port_slot);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ports SEC(".maps");

/* Tap ifindex -> port id: who sent a frame. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} taps SEC(".maps");

/* (VNI, MAC) -> port id: who gets a frame. A row that disagrees wins. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct local_key);
	__type(value, __u32);
	__uint(max_entries, 2 * MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} locals SEC(".maps");

/* The directory, as far as this host needs it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct mapping_key);
	__type(value, struct mapping);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mappings SEC(".maps");

/* Underlay prefixes that mappings lead to. Index 0 is this host. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct peer);
	__uint(max_entries, MAX_PEERS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} peers SEC(".maps");

/* Who is in which security groups; a CA in none has no row. Asked for new flows only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct mapping_key);
	__type(value, struct members);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} members SEC(".maps");

/* Underlay neighbours. Index 0 stays empty. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct next_hop);
	__uint(max_entries, MAX_NEXT_HOPS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} next_hops SEC(".maps");

/* [0]: how often anything that leads to a way has changed, from 1 on: see struct flow. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} directory SEC(".maps");

/* Underlay prefixes of registered hosts; the value is free for Go. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct host_key);
	__type(value, __u32);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} hosts SEC(".maps");

/* Ways out of a subnet, per VNI. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct route_key);
	__type(value, struct route);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} routes SEC(".maps");

/*
 * Where taps and locals led last, each in its own half. Rows are compared with
 * what was looked for anyway, so a wrong or old entry only costs the long way.
 * A direct index saves a hash look-up of 30 ns in each direction.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 2 * MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} shortcuts SEC(".maps");

/* Lines of security groups. A port's row says which piece is its own. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct rule);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} rules SEC(".maps");

/*
 * Every connection of every port: here those of IPv6, below those of IPv4. What a
 * table forgets under pressure is judged again as if it were new; flow_budgets and
 * tenant_flows keep a port, and a tenant's ports together, from pressing others out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow_key4);
	__type(value, struct flow);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct flow_budget);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flow_budgets SEC(".maps");

/* The same of all ports of a tenant, by struct port's tenant. Without a row all is allowed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct flow_budget);
	__uint(max_entries, MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tenant_flows SEC(".maps");

/* [0]: when the agent counted flows last, ticks. Without an agent budgets don't bind. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} swept SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(max_entries, 8192);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
	__uint(max_entries, 8192);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} services SEC(".maps");

/* The tables of all services, one behind the other; each slot is an index into backends. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} service_slots SEC(".maps");

/* Index 0 stays empty. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct backend);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct limits_row);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} port_limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct tally);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} port_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct timing);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} port_times SEC(".maps");

/* One count per reason. The key's type carries the enum into BTF and to Go. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, enum drop_reason);
	__type(value, __u64);
	__uint(max_entries, DROP_MAX);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} drops SEC(".maps");

/* Token buckets of a port: when the next frame is due (GCRA), ns. */
enum bucket {
	BUCKET_TRAP,
	BUCKET_UNRESOLVED,
	BUCKET_ANSWER,
	BUCKET_FROM_BYTES,
	BUCKET_FROM_PACKETS,
	BUCKET_TO_BYTES,
	BUCKET_TO_PACKETS,
	BUCKET_TOO_BIG, /* of its own: who sends too much mustn't silence the gateway */
	BUCKETS = 8,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, MAX_PORTS * BUCKETS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} buckets SEC(".maps");

/*
 * ... and when the next word about a flow that a logged port's rules refuse is due:
 * all ports share the ring that takes them, and anybody can have frames refused.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} denied_buckets SEC(".maps");

/* Frames for the host agent, struct trap each. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} traps SEC(".maps");

/* A ring buffer has no value type: this carries struct trap into BTF and to Go. */
const volatile struct trap *const trap_type;

/* Copies of frames for `replug capture`, struct captured each. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} captures SEC(".maps");

const volatile struct captured *const captured_type;

/* The beginnings of flows, for the flow log, struct flow_event each. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flow_events SEC(".maps");

const volatile struct flow_event *const flow_event_type;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct lost);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} losses SEC(".maps");

/* Enums that stand in narrower fields: this carries them into BTF and to Go. */
const volatile struct {
	enum kind_shift kind_shift;
	enum rule_id rule_id;
	enum flow_flag flow_flag;
	enum flow_timeout flow_timeout;
	enum flow_seen flow_seen;
	enum fragment_kind fragment_kind;
	enum bucket bucket;
} *const narrow_type;

/* [0]: not 0 while somebody watches what every port's frames are dropped for. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} drop_watch SEC(".maps");

/* The frame at hand, one a CPU: the programs' stack is too small for it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct packet);
	__uint(max_entries, 1);
} packets SEC(".maps");

/*
 * A function of its own looks the packet up again rather than taking it as an
 * argument: Linux 6.1 takes keys from a map's value, but not from an argument.
 */
static __always_inline struct packet *packet_at_hand(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&packets, &zero);
}

/* [0]: the last frame that was traced. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct packet);
	__uint(max_entries, 1);
} traced SEC(".maps");

/* [0]: CONTRACT of whoever made these maps; 0: just made. Its type carries the limits to Go. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, enum limits);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} contract SEC(".maps");

#endif
