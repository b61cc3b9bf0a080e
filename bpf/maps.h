/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Every map of the datapath. All are pinned by name and outlive the agent. */
#ifndef MAPS_H
#define MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "vnet.h"

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

/* Underlay neighbours. Index 0 stays empty. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct next_hop);
	__uint(max_entries, MAX_NEXT_HOPS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} next_hops SEC(".maps");

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

/* Flows that came aggregated; losing a row costs order once, nothing else. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

/* When a port last got any aggregated frame, ticks: spares the others a flow look-up. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} aggregated SEC(".maps");

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

/* Token buckets, two a port: when the next frame is due (GCRA), ns. */
enum bucket { BUCKET_TRAP, BUCKET_UNRESOLVED, BUCKETS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, MAX_PORTS * BUCKETS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} buckets SEC(".maps");

/* Frames for the host agent, struct trap each. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} traps SEC(".maps");

/* A ring buffer has no value type: this carries struct trap into BTF and to Go. */
const volatile struct trap *const trap_type;

/* [0]: CONTRACT of whoever made these maps; 0: just made. Its type carries the limits to Go. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, enum limits);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} contract SEC(".maps");

#endif
